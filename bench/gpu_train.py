"""What does a GPU train for many tenants at once, and what does fusing them gain?

    python bench/gpu_train.py [--minutes 5] [--model Qwen3-8B]
    python bench/gpu_train.py --dry-run      a tiny model on the CPU; figures mean nothing

Qwen3 models with random weights. Sixteen requests of 16 to 1024 tokens come from one tenant or from
sixteen with ranks 4 to 32, every row with a loss, with and without adapters on the unembedding:

    fused       all requests in one train step
    unfused     one train step per tenant: the curve of unfused / fused is what fusing gains
    frozen      forward and input gradient of the base alone on the same rows
    determ.     fused in deterministic mode / fused

MFU counts 4 operations a parameter and token (forward and input gradient) against the rate of a
large bf16 product, measured first.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from gpu_model import MODELS, TINY, activation_bytes, matmul_parameters, random_decoder
from gpu_timing import Deadline, Machine, Stopwatch, measure_machine
from harness import Table, write_result
from rounds import measure, median_ratio
from train_case import NUM_REQUESTS, TrainCase

RANKS = (4, 32, 8, 16)
SINGLE_RANK = 15
TOKENS = (512, 64, 1024, 16, 256)
ORDER = ("Qwen3-8B", "Qwen3-4B", "Qwen3-0.6B")
ROUNDS = 3
ACTIVATION_SHARE = 0.6  # of the memory that is free once adapters have theirs


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description="Train many tenants on a GPU.")
    parser.add_argument("--minutes", type=float, default=5.0, help="begin no row after these")
    parser.add_argument("--model", choices=ORDER, help="this one only")
    parser.add_argument("--dry-run", action="store_true", help="tiny and on the CPU")
    arguments = parser.parse_args()
    if not arguments.dry_run and not torch.cuda.is_available():
        print("skipped: bench/gpu_train.py needs a CUDA device, or --dry-run")
        return
    device, deadline = torch.device("cpu"), Deadline(arguments.minutes)
    models = {"tiny": TINY}
    if not arguments.dry_run:
        device = torch.device("cuda")
        models = {name: MODELS[name] for name in ORDER if arguments.model in (None, name)}
    machine = measure_machine(Stopwatch(device))
    rows: list[dict[str, Any]] = []
    table = Table(
        "model", "tokens", "tenants", "unembed", "tok/s", "MFU", "gain", "/ frozen", "determ."
    )
    for name, fields in models.items():
        if not deadline.is_over:
            for row in measure_model(name, fields, device, machine, deadline):
                rows.append(row)
                print_row(table, row)
    if not arguments.dry_run:
        write_result("gpu_train", {"matmul_flops_per_s": machine.matmul_flops_per_s, "rows": rows})


def measure_model(
    name: str,
    fields: dict[str, object],
    device: torch.device,
    machine: Machine,
    deadline: Deadline,
) -> Iterator[dict[str, Any]]:
    """Rows of one model: tokens a request, one tenant and sixteen, unembedding off and on."""
    case, fixed = open_cases(fields, device)
    sizes = TOKENS if device.type == "cuda" else (8,)
    for has_unembed in (False, True):
        for tokens_each in sizes:
            if deadline.is_over:
                return
            for row in measure_size(case, fixed, tokens_each, has_unembed):
                rate = 4 * matmul_parameters(case.model) * row["tokens_per_s"]
                yield {"model": name, "mfu": rate / machine.matmul_flops_per_s, **row}


def open_cases(fields: dict[str, object], device: torch.device) -> tuple[TrainCase, TrainCase]:
    """The model with arenas for all tenants of a row, and the same in deterministic mode."""
    model, fixed = random_decoder(fields, device)
    ranks = [RANKS[index % len(RANKS)] for index in range(NUM_REQUESTS)]
    widths = sum(site.in_features + site.out_features + 512 for site in model.sites)
    elements = (sum(ranks) + SINGLE_RANK) * widths
    limit = 1 << 30
    if device.type == "cuda":
        free = torch.cuda.mem_get_info()[0] - elements * (20 + model.dtype.itemsize)
        limit = int(ACTIVATION_SHARE * free / activation_bytes(model))
    case = TrainCase(
        model,
        ranks=ranks,
        single_rank=SINGLE_RANK,
        state_bytes=elements * 20,
        weights_bytes=elements * model.dtype.itemsize,
        recompute_above_tokens=limit,
    )
    return case, case.deterministic(fixed)


def measure_size(
    case: TrainCase, fixed: TrainCase, tokens_each: int, has_unembed: bool
) -> list[dict[str, Any]]:
    """One row for one tenant and one for sixteen, all in the same rounds."""
    works = {
        number: case.works(case.tenants(number, has_unembed), tokens_each)
        for number in (1, NUM_REQUESTS)
    }
    variants: dict[str, Callable[[], None]] = {"frozen": partial(case.frozen, works[1])}
    for number, own in works.items():
        variants[f"fused {number}"] = partial(case.train, own)
        variants[f"deterministic {number}"] = partial(fixed.train, own)
        if number > 1:
            variants[f"unfused {number}"] = partial(case.train_one_by_one, own)
    wait = torch.cuda.synchronize if case.model.device.type == "cuda" else lambda: None
    seconds = measure(variants, ROUNDS, wait)
    rows = []
    for number, own in works.items():
        fused, deterministic = seconds[f"fused {number}"], seconds[f"deterministic {number}"]
        unfused = seconds.get(f"unfused {number}", fused)
        run_ids = list(dict.fromkeys(work.run_id for work in own))
        rows.append(
            {
                "tokens_per_request": tokens_each,
                "tenants": number,
                "unembed": has_unembed,
                "fused_s": fused,
                "unfused_s": unfused,
                "frozen_s": seconds["frozen"],
                "deterministic_s": deterministic,
                "optimizer_s": time_optimizer(case, run_ids, wait),
                "tokens_per_s": NUM_REQUESTS * tokens_each / float(np.median(fused)),
                "gain": median_ratio(unfused, fused),
                "of_free": median_ratio(deterministic, fused),
                "of_frozen": median_ratio(fused, seconds["frozen"]),
            }
        )
    return rows


def time_optimizer(case: TrainCase, run_ids: list[str], wait: Callable[[], None]) -> float:
    """Seconds of one step, which uses up the gradients."""
    started = time.perf_counter()
    case.step_optimizer(run_ids)
    wait()
    return time.perf_counter() - started


def print_row(table: Table, row: dict[str, Any]) -> None:
    table.row(
        row["model"],
        row["tokens_per_request"],
        row["tenants"],
        "yes" if row["unembed"] else "no",
        f"{row['tokens_per_s']:.0f}",
        f"{row['mfu']:.1%}",
        f"{row['gain']:.2f}",
        f"{row['of_frozen']:.2f}",
        f"{row['of_free']:.2f}",
    )


if __name__ == "__main__":
    main()
