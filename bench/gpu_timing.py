"""Time on a CUDA device, and what the device can do at best.

In a dry run there is no device: everything runs once, by the clock, and the figures mean nothing.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

REPEATS = 3
GRAPH_CALLS = 8  # in one replay
CACHE_FACTOR = 4  # what is read between two uses of the same buffer, in sizes of the L2 cache

Work = Callable[[int], object]


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one call."""

    median: float
    p20: float
    p80: float
    repeats: tuple[float, ...]  # the median of each repeat

    @classmethod
    def of(cls, repeats: Sequence[Sequence[float]]) -> "Timing":
        """From the seconds of every call of each repeat."""
        low, middle, high = np.percentile(repeats, (20, 50, 80))
        medians = tuple(float(np.median(repeat)) for repeat in repeats)
        return cls(float(middle), float(low), float(high), medians)

    def as_dict(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in ("median", "p20", "p80", "repeats")}


@dataclass(frozen=True, slots=True)
class Machine:
    """What the device reaches in this run: the floors are computed from it."""

    copy_bytes_per_s: float  # read and written
    matmul_flops_per_s: float  # bfloat16, 8192 x 8192 x 8192


class Stopwatch:
    """Calls work over and over; call number i is told i, to take another set of buffers."""

    def __init__(self, device: torch.device, samples: int = 12) -> None:
        self.device = device
        self.is_dry = device.type != "cuda"
        self._samples = samples

    def events(self, work: Work) -> Timing:
        """Eager calls between events; the host runs ahead as far as it can."""
        return self.alternate({"": work})[""]

    def alternate(self, works: Mapping[str, Work]) -> dict[str, Timing]:
        """The same of several works in turn, so that a hotter device slows all of them."""
        if self.is_dry:
            return {name: self._by_clock(work) for name, work in works.items()}
        for work in works.values():
            for index in range(3):
                work(index)
        return self._sample(works, 1)

    def graph(self, work: Work) -> Timing:
        """Calls out of a captured graph: no host."""
        if self.is_dry:
            return self._by_clock(work)
        side: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for index in range(3):
                work(index)
        torch.cuda.current_stream().wait_stream(side)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            for index in range(GRAPH_CALLS):
                work(index)
        captured.replay()
        return self._sample({"": lambda index: captured.replay()}, GRAPH_CALLS)[""]

    def _sample(self, works: Mapping[str, Work], calls: int) -> dict[str, Timing]:
        repeats: dict[str, list[list[float]]] = {name: [] for name in works}
        for _ in range(REPEATS):
            for name, work in works.items():
                repeats[name].append([seconds / calls for seconds in self._repeat(work)])
        return {name: Timing.of(own) for name, own in repeats.items()}

    def _repeat(self, work: Work) -> list[float]:
        """Seconds of some calls, one after the other."""
        marks = [_mark() for _ in range(self._samples + 1)]
        torch.cuda.synchronize()
        marks[0].record()
        for index, mark in enumerate(marks[1:]):
            work(index)
            mark.record()
        torch.cuda.synchronize()
        return [a.elapsed_time(b) / 1e3 for a, b in pairwise(marks)]

    def _by_clock(self, work: Work) -> Timing:
        started = time.perf_counter()
        work(0)
        seconds = time.perf_counter() - started
        return Timing(seconds, seconds, seconds, (seconds,))


def _mark() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


class Deadline:
    """Says when no further row may begin."""

    def __init__(self, minutes: float) -> None:
        self._end = time.monotonic() + 60 * minutes

    @property
    def is_over(self) -> bool:
        return time.monotonic() > self._end


def num_sets(set_bytes: int, device: torch.device) -> int:
    """Sets of buffers to take in turn, so that no call finds the last one's data in the cache."""
    if device.type != "cuda":
        return 2
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return -(-CACHE_FACTOR * cache // set_bytes) + 1


def measure_machine(stopwatch: Stopwatch) -> Machine:
    """Copy a gigabyte, and multiply two square matrices."""
    size, width = (1 << 10, 64) if stopwatch.is_dry else (1 << 29, 8192)
    options = {"dtype": torch.bfloat16, "device": stopwatch.device}
    source = torch.ones(size, **options)  # type: ignore[call-overload]
    target = torch.empty_like(source)
    copy = stopwatch.events(lambda index: target.copy_(source))
    a, b = torch.randn(2, width, width, **options)  # type: ignore[call-overload]
    out = torch.empty_like(a)
    product = stopwatch.events(lambda index: torch.mm(a, b, out=out))
    return Machine(4 * size / copy.median, 2 * width**3 / product.median)


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill all memory that is allocated uninitialised with NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
