"""From which size on is a matmul faster on a team of threads than on one?

    python bench/threads.py

Prints, for growing sizes, the time of x W^T on all threads over that on one, in alternation; the
worker's SMALL_STEP_MACS lies where the ratio falls below 1 for the steps of a small model.
"""

import time

import numpy as np
import torch
from harness import Table, write_result

ROWS = (1, 4, 16, 64, 256)
WIDTHS = (64, 256, 512)
REPEATS, ROUNDS = 50, 7


def seconds(rows: int, width: int, threads: int) -> float:
    """Time of one product [rows, width] x [width, 3 width]."""
    torch.set_num_threads(threads)
    x, weight = torch.randn(rows, width), torch.randn(3 * width, width)
    for _ in range(3):
        torch.nn.functional.linear(x, weight)
    start = time.perf_counter()
    for _ in range(REPEATS):
        torch.nn.functional.linear(x, weight)
    return (time.perf_counter() - start) / REPEATS


def main() -> None:
    """Measure and print."""
    team = torch.get_num_threads()
    table = Table("rows", "width", "million MACs", f"{team} threads / 1")
    result = []
    for width in WIDTHS:
        for rows in ROWS:
            ratios = [seconds(rows, width, team) / seconds(rows, width, 1) for _ in range(ROUNDS)]
            macs, ratio = rows * width * 3 * width, float(np.median(ratios))
            result.append({"rows": rows, "width": width, "macs": macs, "ratio": ratio})
            table.row(rows, width, f"{macs / 1e6:.2f}", f"{ratio:.2f}")
    write_result("threads", {"threads": team, "rows": result})


if __name__ == "__main__":
    main()
