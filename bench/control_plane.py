"""How many training steps a second does the control plane carry?

    python bench/control_plane.py [--seconds 10]

A random Qwen3 of 0.14 M parameters (2 layers, width 64, vocabulary 512), so small that the model
hardly matters. Four tenants, each a process of its own, do forward_backward on 4 x 64 tokens and
optim_step, both submitted together and awaited, over tcp against a spawned engine. SkyRL-tx at its
best does 6.1 such steps/s on two cores (the other side's figure, measured earlier on two cores).
"""

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from harness import Table, save_random_qwen3, write_result

from weft.client import AdamParams, Datum, ModelInput, ServiceClient
from weft.engine import Engine

NUM_TENANTS = 4
NUM_DATUMS, DATUM_TOKENS = 4, 64
VOCAB_SIZE = 512
PEER_STEPS_PER_S = 6.1
GOAL_STEPS_PER_S = 150


def save_model(path: Path) -> int:
    """Write the random model; returns its number of parameters."""
    return save_random_qwen3(
        path,
        width=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=192,
        max_position_embeddings=1024,
        vocab_size=VOCAB_SIZE,
    )


def tenant(address: str, model: str, seed: int, seconds: float, start: Any, results: Any) -> None:
    """Train for a while; reports the latencies of its steps, ms, and the tenants per batch."""
    generator = np.random.default_rng(seed)
    data = []
    for _ in range(NUM_DATUMS):
        tokens = generator.integers(0, VOCAB_SIZE, DATUM_TOKENS + 1)
        data.append(
            Datum(ModelInput.from_ints(tokens[:-1].tolist()), {"target_tokens": tokens[1:]})
        )
    latencies, tenants = [], []
    with ServiceClient(base_url=address) as service:
        run = service.create_lora_training_client(model, rank=8, seed=seed)

        def step() -> float:
            passed = run.forward_backward(data, "cross_entropy")
            run.optim_step(AdamParams(learning_rate=1e-4)).result(60)
            return passed.result(60).metrics["batch_tenants:max"]

        for _ in range(10):
            step()
        start.wait()
        deadline = time.perf_counter() + seconds
        while time.perf_counter() < deadline:
            begin = time.perf_counter()
            tenants.append(step())
            latencies.append(1e3 * (time.perf_counter() - begin))
    results.put((latencies, tenants))


def measure(seconds: float) -> dict[str, float]:
    """Steps per second of all tenants together, and the latency of one step."""
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        parameters = save_model(Path(folder) / "model")
        address = f"ipc://{folder}/front"
        with Engine(f"{folder}/model", isolate=True, listen=[address]):
            start, results = spawn.Barrier(NUM_TENANTS), spawn.Queue()
            processes = [
                spawn.Process(
                    target=tenant,
                    args=(address, f"{folder}/model", seed, seconds, start, results),
                )
                for seed in range(NUM_TENANTS)
            ]
            for process in processes:
                process.start()
            collected = [results.get(timeout=seconds + 120) for _ in processes]
            for process in processes:
                process.join()
    latencies = np.concatenate([one[0] for one in collected])
    return {
        "parameters": float(parameters),
        "steps_per_s": len(latencies) / seconds,
        "p50_ms": float(np.percentile(latencies, 50)),
        "p99_ms": float(np.percentile(latencies, 99)),
        "tenants_per_batch": float(np.mean(np.concatenate([one[1] for one in collected]))),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    result = measure(parser.parse_args().seconds)
    table = Table("steps/s", "goal", "vs SkyRL-tx", "p50 ms", "p99 ms", "tenants/batch")
    table.row(
        f"{result['steps_per_s']:.0f}",
        f">= {GOAL_STEPS_PER_S}",
        f"{result['steps_per_s'] / PEER_STEPS_PER_S:.0f}x",
        f"{result['p50_ms']:.1f}",
        f"{result['p99_ms']:.1f}",
        f"{result['tenants_per_batch']:.1f}",
    )
    write_result("control_plane", result)


if __name__ == "__main__":
    main()
