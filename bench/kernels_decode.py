"""The rows of `kernels.py` on few rows, as decode steps have them: forward, by graph replay."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from gpu_timing import Deadline, Stopwatch, num_sets
from harness import Table
from layer_case import Groups, LayerCase, LayerWeights, Mix, decode
from layer_check import check_outputs

ROWS = (64, 1, 256, 8, 32, 128)
ADAPTERS = (1, 8, 64)  # and as many as there are rows
RANKS = ("16", "64", "mixed")
TILE_ROWS = 16


def measure_decode(
    groups: Groups, stopwatch: Stopwatch, deadline: Deadline, left_out: list[str]
) -> Iterator[dict[str, Any]]:
    """Seconds of a layer's linears without adapters, with one, and with several."""
    dtype = torch.float32 if stopwatch.is_dry else torch.bfloat16
    macs = sum(width * sum(outs) for width, outs in groups)
    layers = num_sets(macs * dtype.itemsize, stopwatch.device)
    base = LayerWeights(groups, layers, stopwatch.device, dtype)
    table = Table("rows", "ranks", "adapters", "us", "of frozen", "of one")
    is_dry = stopwatch.is_dry
    for ranks in ("4",) if is_dry else RANKS:
        for num_rows in (2,) if is_dry else ROWS:
            if deadline.is_over:
                left_out.append(f"decode of {num_rows} rows, ranks {ranks}")
                continue
            times: dict[int, dict[str, object]] = {}
            for number in (
                0,
                *sorted({number for number in (*ADAPTERS, num_rows) if number <= num_rows}),
            ):
                case = LayerCase(
                    base, Mix(num_rows, max(number, 1), ranks, "equal"), tile_rows=TILE_ROWS
                )
                if number:
                    check_outputs("decode", decode, case)
                work = partial(decode, case, has_adapters=number > 0)
                timing = stopwatch.graph(work)
                times[number] = timing.as_dict()
                medians = [float(str(times[at]["median"])) for at in (0, 1) if at in times]
                ratios = [f"{timing.median / median:.3f}" for median in medians]
                table.row(
                    num_rows,
                    ranks,
                    number,
                    f"{timing.median * 1e6:.1f}",
                    *ratios,
                    *["-"] * (2 - len(ratios)),
                )
            yield {"rows": num_rows, "ranks": ranks, "seconds_by_adapters": times}
