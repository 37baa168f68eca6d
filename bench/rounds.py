"""Time several works in turn, so that what slows the machine for a while slows all of them."""

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np


def measure(
    variants: Mapping[str, Callable[[], object]],
    rounds: int,
    wait: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of every variant in every round, after one round that is not counted.

    Args:
        wait: until the device has done what it was told.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for counted in range(-1, rounds):
        for name, work in variants.items():
            start = time.perf_counter()
            work()
            wait()
            if counted >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median over rounds of the ratio of two variants of the same round."""
    return float(np.median(np.array(above) / np.array(below)))
