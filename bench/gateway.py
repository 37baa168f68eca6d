"""What does the official SDK through the HTTP gateway cost against our own client?

    make sdk; python bench/gateway.py [--seconds 10] [--sdk .sdk/0.38.0/bin/python]

The engine and model of `control_plane.py`, and four tenants, each a process of its own, once with
the unmodified SDK and once with `weft.client`, in turn on one server: training steps (4 x 64
tokens, forward_backward and optim_step submitted together) and samples (16 in flight a tenant, 32
tokens in, 16 out). CPU is that of each side for a step; bytes are what crossed the loopback
interface, both ways, headers included.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from control_plane import save_model
from harness import ROOT, Table, write_result

from weft.engine.serving import Server

NUM_TENANTS = 4
GOAL_STEPS_PER_S = 40
TENANT = Path(__file__).with_name("gateway_tenant.py")
TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int | None) -> float:
    """CPU that a process has used."""
    if pid is None:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def loopback_bytes() -> int:
    """Bytes that the loopback interface has carried."""
    for line in Path("/proc/net/dev").read_text(encoding="utf-8").splitlines():
        name, _, counts = line.partition(":")
        if name.strip() == "lo":
            return int(counts.split()[0])
    return 0


def measure(server: Server, python: str, api: str, what: str, seconds: float) -> dict[str, float]:
    """One kind of work of all tenants with one client."""
    address = server.url if api == "tinker" else server.addresses[0]
    model = server.engine.worker_config.model
    tenants = [
        subprocess.Popen(
            [python, str(TENANT), api, address, model, str(seed), str(seconds), what],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in range(NUM_TENANTS)
    ]
    pids = {
        "broker": os.getpid(),
        "worker": server.engine.worker_pid,
        "gateway": server.gateway_pid,
    }
    try:
        for tenant in tenants:
            assert tenant.stdout is not None
            assert tenant.stdout.readline() == "ready\n", "a tenant did not start"
        before = {name: cpu_seconds(pid) for name, pid in pids.items()}
        num_bytes, begin = loopback_bytes(), time.perf_counter()
        for tenant in tenants:
            assert tenant.stdin is not None
            tenant.stdin.write("go\n")
            tenant.stdin.flush()
        found = [json.loads(tenant.stdout.readline()) for tenant in tenants if tenant.stdout]
        elapsed = time.perf_counter() - begin
        num_bytes = loopback_bytes() - num_bytes
        after = {name: cpu_seconds(pid) for name, pid in pids.items()}
    finally:
        for tenant in tenants:
            tenant.kill()
            tenant.communicate()
    latencies = np.concatenate([one["latencies_ms"] for one in found])
    count = len(latencies)
    cpu = {f"{name}_cpu_ms": 1e3 * (after[name] - before[name]) / count for name in pids}
    return {
        "per_s": count / elapsed,
        "p50_ms": float(np.percentile(latencies, 50)),
        "p99_ms": float(np.percentile(latencies, 99)),
        "client_cpu_ms": 1e3 * sum(one["cpu_s"] for one in found) / count,
        **cpu,
        "wire_kB": num_bytes / count / 1e3,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sdk", default=str(ROOT / ".sdk" / "0.38.0" / "bin" / "python"))
    options = parser.parse_args()
    clients = {"sdk": (options.sdk, "tinker"), "native": (sys.executable, "weft.client")}
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = f"{folder}/model"
        save_model(Path(model))
        with Server(
            model, http="127.0.0.1:0", listen=["tcp://127.0.0.1:0"], state_dir=f"{folder}/state"
        ) as server:
            for what in ("steps", "samples"):
                rounds: dict[str, list[dict[str, float]]] = {name: [] for name in clients}
                for _ in range(options.rounds):
                    for name, (python, api) in clients.items():
                        rounds[name].append(measure(server, python, api, what, options.seconds))
                results[what] = {name: _median(found) for name, found in rounds.items()}
                ratios = [a["per_s"] / b["per_s"] for a, b in zip(*rounds.values(), strict=True)]
                results[what]["ratio"] = float(np.median(ratios))
    columns = list(results["steps"]["sdk"])
    table = Table("", *columns)
    for what in ("steps", "samples"):
        for name in clients:
            table.row(f"{what}, {name}", *(f"{results[what][name][key]:.2f}" for key in columns))
        print(f"{what}: the SDK does {results[what]['ratio']:.2f} of the native client's")
    steps_per_s = results["steps"]["sdk"]["per_s"]
    print(f"steps/s of the SDK: {steps_per_s:.0f} (goal >= {GOAL_STEPS_PER_S})")
    write_result("gateway", results)


def _median(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {key: float(np.median([one[key] for one in rounds])) for key in rounds[0]}


if __name__ == "__main__":
    main()
