"""All that needs a GPU: its tests, and the benches of kernels, training and sampling.

    make gpu
    python bench/gpu.py [--part tests] [--part kernels] [--part train] [--part sample]
    python bench/gpu.py --dry-run            the same on a CPU, tiny, where Triton interprets

Every part ends within 8 minutes and all within 25; one that does not is stopped and has failed. The
project need not be installed. Without a CUDA device it says so and succeeds. Exit status 1 when a
part failed. Results go to bench/results/, of the tests to gpu.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from harness import ROOT, write_result

LIMITS = {"tests": 8.0, "kernels": 7.5, "train": 5.5, "sample": 3.5}  # minutes
RESERVE = 1.5  # minutes of a bench's limit that its last row may take
SCRIPTS = {"kernels": "kernels.py", "train": "gpu_train.py", "sample": "gpu_sample.py"}
MAX_PROCESSES = 8  # on one device
KERNEL_TESTS = "tests/kernels/gpu"
DRY_TESTS = "tests/kernels/gpu/test_swiglu.py"


def main() -> int:
    """Run the parts and tell how each went."""
    parser = argparse.ArgumentParser(description="All that needs a GPU.")
    parser.add_argument("--part", action="append", choices=tuple(LIMITS), help="may be repeated")
    parser.add_argument("--dry-run", action="store_true", help="tiny and on the CPU")
    arguments = parser.parse_args()
    if not arguments.dry_run and (reason := why_no_cuda()):
        print(f"skipped: {reason} (bench/gpu.py --dry-run needs none)")
        return 0
    parts: dict[str, dict[str, Any]] = {}
    kernels: list[str] = []
    for name in arguments.part or LIMITS:
        print(f"--- {name}, at most {LIMITS[name]:g} minutes", flush=True)
        started = time.monotonic()
        if name == "tests":
            is_passed, kernels = run_tests(arguments.dry_run)
        else:
            command = [f"bench/{SCRIPTS[name]}", *options(name, arguments.dry_run)]
            is_passed = run(command, 60 * LIMITS[name])
        parts[name] = {"passed": is_passed, "seconds": round(time.monotonic() - started, 1)}
    for name, part in parts.items():
        print(f"{name}: {'passed' if part['passed'] else 'FAILED'} in {part['seconds']:.0f} s")
    if "tests" in parts and not arguments.dry_run:
        write_result("gpu", {"parts": parts, "kernels": kernels})
    return 0 if all(part["passed"] for part in parts.values()) else 1


def why_no_cuda() -> str:
    """Why PyTorch sees no CUDA device; "" when it does."""
    try:
        import torch
    except ImportError:
        return "no CUDA device, since there is no torch"
    if torch.version.cuda is None:
        return f"no CUDA device, since this torch is built without CUDA, {torch.__version__}"
    return "" if torch.cuda.is_available() else "no CUDA device"


def options(name: str, is_dry: bool) -> list[str]:
    """Of the bench of a part."""
    return ["--dry-run"] if is_dry else ["--minutes", f"{LIMITS[name] - RESERVE:g}"]


def run_tests(is_dry: bool) -> tuple[bool, list[str]]:
    """The tests of kernels, of what uses them, and those marked gpu.

    Returns whether all passed, and the kernels that those which did have launched.
    """
    users, marked = tests_with("import interpreter"), tests_with("mark.gpu")
    suites = [[DRY_TESTS]] if is_dry else [[KERNEL_TESTS], users, ["-m", "gpu", *marked]]
    passed: list[bool] = []
    kernels: set[str] = set()
    ends = time.monotonic() + 60 * LIMITS["tests"]
    with tempfile.TemporaryDirectory() as folder:
        plugin = ["-p", "launched_kernels", "--launched-kernels", folder]
        for chosen in suites:
            command = ["-m", "pytest", "-q", *parallel(), *plugin, *chosen]
            passed.append(run(command, ends - time.monotonic(), is_interpreted=is_dry))
            for path in Path(folder).glob("*.json"):
                kernels.update(json.loads(path.read_text(encoding="utf-8")))
    return all(passed), sorted(kernels)


def tests_with(text: str) -> list[str]:
    """Files of tests outside the kernels' that contain a text."""
    return [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if text in path.read_text(encoding="utf-8") and ROOT / KERNEL_TESTS not in path.parents
    ]


def parallel() -> list[str]:
    """Options of pytest that spread tests, and with them compilation, over the cores."""
    cores = len(os.sched_getaffinity(0))
    return ["-n", str(min(cores // 2, MAX_PROCESSES))] if find_spec("xdist") and cores > 3 else []


def run(command: list[str], limit_s: float, *, is_interpreted: bool = False) -> bool:
    """Run Python on this tree, whether or not it is installed; whether it succeeded in time."""
    paths = [str(ROOT / "tests" / "typing"), str(ROOT / "bench")]
    settings = {"PYTHONPATH": os.pathsep.join(paths), "TRITON_INTERPRET": str(int(is_interpreted))}
    try:
        done = subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            env={**os.environ, **settings},
            timeout=max(limit_s, 1),
            check=False,
        )
    except subprocess.TimeoutExpired:
        print("stopped at its limit")
        return False
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
