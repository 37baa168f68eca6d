"""What the broker has counted since its start: requests, their times, and the work of workers.

Of all tenants together; nothing here tells whose a request was. Adding costs a few dictionary
look-ups a request.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import zip_longest
from typing import Any

from ...client.errors import CODES
from ...client.worker_messages import WorkerCounters
from ..histogram import SECONDS, Histogram

OK = "ok"  # the code of a success
# Told from the first request of a kind on: whoever asks for an increase must have seen the zero.
FROM_ZERO = (OK, "busy", *(code for code, row in CODES.items() if row.fault == "server"))


class WorkTotals:
    """Sums of what several workers did."""

    def __init__(self) -> None:
        self.steps: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.busy_s: dict[str, float] = {}
        self.tokens: Counter[str] = Counter()
        self.tenants: dict[str, list[int]] = {}
        self.tenants_sum: Counter[str] = Counter()

    def add(self, done: "WorkerCounters | WorkTotals") -> None:
        """Add what a worker has done in all, or several have."""
        self.steps.update(done.steps)
        self.failures.update(done.failures)
        self.tokens.update(done.tokens)
        self.tenants_sum.update(done.tenants_sum)
        for kind, seconds in done.busy_s.items():
            self.busy_s[kind] = self.busy_s.get(kind, 0.0) + seconds
        for kind, counts in done.tenants.items():
            self.tenants[kind] = _sums(self.tenants.get(kind, ()), counts)

    def to_fields(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "steps": dict(self.steps),
            "failures": dict(self.failures),
            "busy_s": dict(self.busy_s),
            "tokens": dict(self.tokens),
            "tenants": {
                kind: {"counts": counts, "sum": self.tenants_sum[kind]}
                for kind, counts in self.tenants.items()
            },
        }


class Metrics:
    """The counters of one broker."""

    def __init__(self) -> None:
        self.requests: dict[str, Counter[str]] = {}  # by kind and code
        self.refused: Counter[str] = Counter()  # messages that belong to no request, by code
        self.latency: dict[str, Histogram] = {}  # s, by kind
        self.queue: dict[str, Histogram] = {}
        self.sessions_opened = 0
        self.runs_lost = 0
        self.workers_lost = 0
        self.retired = WorkTotals()  # of workers that are gone

    def outcome(self, kind: str, code: str) -> None:
        """Count a request of a kind that was answered; code "" stands for a success."""
        found = self.requests.get(kind)
        if found is None:
            found = self.requests[kind] = Counter(dict.fromkeys(FROM_ZERO, 0))
        found[_known(code or OK)] += 1

    def refuse(self, code: str) -> None:
        """Count a message that was refused before it was anybody's request."""
        self.refused[_known(code)] += 1

    def took(self, kind: str, seconds: float) -> None:
        """Note the time from the arrival of a whole request to its answer."""
        _add(self.latency, kind, seconds)

    def waited(self, kind: str, seconds: float) -> None:
        """Note the time from the arrival of a whole request to its dispatch."""
        _add(self.queue, kind, seconds)

    def retire(self, done: WorkerCounters | None) -> None:
        """A worker is gone; what it did stays in the sums."""
        self.workers_lost += 1
        if done is not None:
            self.retired.add(done)

    def work_done(self, living: Iterable[WorkerCounters]) -> WorkTotals:
        """What all workers did, those that are gone included."""
        totals = WorkTotals()
        totals.add(self.retired)
        for done in living:
            totals.add(done)
        return totals

    def to_fields(self) -> dict[str, Any]:
        """What was counted here, as plain data."""
        return {
            "requests": {kind: dict(codes) for kind, codes in self.requests.items()},
            "refused": dict(self.refused),
            "latency_s": {kind: found.to_fields() for kind, found in self.latency.items()},
            "queue_s": {kind: found.to_fields() for kind, found in self.queue.items()},
            "sessions_opened": self.sessions_opened,
            "runs_lost": self.runs_lost,
            "workers_lost": self.workers_lost,
        }


def _add(histograms: dict[str, Histogram], kind: str, seconds: float) -> None:
    found = histograms.get(kind)
    if found is None:
        found = histograms[kind] = Histogram(SECONDS)
    found.add(seconds)


def _known(code: str) -> str:
    """The code, if it is one: there must be no end of label values."""
    return code if code == OK or code in CODES else "internal"


def _sums(one: Iterable[int], other: Iterable[int]) -> list[int]:
    return [sum(pair) for pair in zip_longest(one, other, fillvalue=0)]


def levels(living: Iterable[WorkerCounters]) -> dict[str, Mapping[str, int]]:
    """What the living workers hold and have room for, together."""
    used: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for each in living:
        used.update(each.used)
        total.update(each.total)
    return {"used": dict(used), "total": dict(total)}
