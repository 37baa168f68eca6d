"""How often values of which size occurred: cheap to add to, a short list of numbers to tell."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
)  # fmt: skip
TENANTS = (1, 2, 4, 8, 16, 32, 64, 128)


class Histogram:
    """Counts of values: entry i those up to `bounds[i]` and above the bound before, the last the
    rest."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds  # ascending
        self.counts = [0] * (len(bounds) + 1)
        self.sum: float = 0

    def add(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def to_fields(self) -> dict[str, Any]:
        """As plain data; whoever reads it knows the bounds."""
        return {"counts": list(self.counts), "sum": self.sum}
