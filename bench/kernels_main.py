"""The command of `kernels.py`: all its rows, or those of one part."""

import argparse
import os
import sys
from typing import Any

if "--dry-run" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported

import torch
from gpu_timing import Deadline, Stopwatch, measure_machine
from harness import write_result

MODEL = "Qwen3-8B"
TINY = ((64, (64, 32, 32)), (64, (64,)), (64, (96, 96)), (96, (64,)))
PARTS = ("linears", "decode", "optimizer")


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description="How far are the GPU kernels from the floor?")
    parser.add_argument("--minutes", type=float, default=7.0, help="begin no row after these")
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--dry-run", action="store_true", help="tiny and without a device")
    arguments = parser.parse_args()
    if not arguments.dry_run and not torch.cuda.is_available():
        print("skipped: bench/kernels.py needs a CUDA device, or --dry-run")
        return
    result = measure(arguments.dry_run, arguments.minutes, arguments.only)
    if not arguments.dry_run:
        write_result("kernels" if arguments.only is None else f"kernels_{arguments.only}", result)


def measure(is_dry: bool, minutes: float, only: str | None) -> dict[str, Any]:
    """All rows of the parts that are asked for."""
    from kernels_decode import measure_decode  # import Triton
    from kernels_linears import measure_linears
    from kernels_optimizer import measure_optimizer

    from weft.kernels.gpu.shapes import PUBLISHED

    (shape,) = (shape for shape in PUBLISHED if shape.name == MODEL)
    groups = TINY if is_dry else shape.groups[:-1]  # without the unembedding
    watch, deadline = Stopwatch(torch.device("cpu" if is_dry else "cuda")), Deadline(minutes)
    machine = measure_machine(watch)
    rates = machine.copy_bytes_per_s / 1e12, machine.matmul_flops_per_s / 1e12
    print("dry run" if is_dry else "copy {:.2f} TB/s, bf16 matmul {:.0f} TFLOP/s".format(*rates))
    left_out: list[str] = []
    rows = {
        "linears": measure_linears(groups, watch, machine, deadline, left_out),
        "decode": measure_decode(groups, watch, deadline, left_out),
        "optimizer": measure_optimizer(watch, machine, deadline, left_out),
    }
    found = {part: list(rows[part]) for part in PARTS if only in (None, part)}
    if left_out:
        print(f"no time for {len(left_out)} rows")
    return {
        "shape": "tiny" if is_dry else MODEL,
        "copy_bytes_per_s": machine.copy_bytes_per_s,
        "matmul_flops_per_s": machine.matmul_flops_per_s,
        "left_out": left_out,
        **found,
    }
