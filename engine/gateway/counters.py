"""What the gateway itself counts, beside what the broker tells. Touched by its loop alone."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..histogram import SECONDS, Histogram

UNMATCHED = "unmatched"  # the route of a path that is none
METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
OTHER = "other"  # a method that is none of these: peers may send any word


class GatewayCounters:
    """Counts since the gateway's start, and what it holds now.

    A route is the pattern that was matched, such as `/api/v1/runs/{run_id}`, never a path: paths
    are chosen by peers, and there is no end of them.
    """

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str, int]] = Counter()  # route, method, status
        self.durations: dict[str, Histogram] = {}  # s, by route
        self.refused_bodies: Counter[str] = Counter()  # by code
        self.received_bytes = 0  # of bodies, as they came
        self.sent_bytes = 0
        self.parked_polls = 0
        self.futures = 0  # kept, answered or not
        self.future_bytes = 0  # of the answers among them
        self.lines = 0  # connections to the broker

    def answered(
        self, route: str, method: str, status: int, seconds: float, *, received: int, sent: int
    ) -> None:
        """Count a request that was answered, and the bytes of both bodies."""
        self.requests[route, method if method in METHODS else OTHER, status] += 1
        found = self.durations.get(route)
        if found is None:
            found = self.durations[route] = Histogram(SECONDS)
        found.add(seconds)
        self.received_bytes += received
        self.sent_bytes += sent

    def refused_body(self, reason: str) -> None:
        """Count a body that was not read to its end, or could not be; a code says why."""
        self.refused_bodies[reason] += 1

    def to_fields(self) -> dict[str, Any]:
        """What there is, for the table of figures."""
        return {
            "bounds": {"seconds": SECONDS},
            "requests": self.requests,
            "durations": {route: found.to_fields() for route, found in self.durations.items()},
            "parked_polls": self.parked_polls,
            "received_bytes": self.received_bytes,
            "sent_bytes": self.sent_bytes,
            "refused_bodies": self.refused_bodies,
            "futures": self.futures,
            "future_bytes": self.future_bytes,
            "lines": self.lines,
        }

    @contextmanager
    def parked(self) -> Iterator[None]:
        """Count a poll as parked while the block waits."""
        self.parked_polls += 1
        try:
            yield
        finally:
            self.parked_polls -= 1
