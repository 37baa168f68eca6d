"""What a worker tells the broker unasked: how far it has loaded, its longer commands, its counts."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ...client.limits import limit
from ...client.messages import Header
from ...client.worker_messages import Underway, WorkerCounters, WorkerProgress

LOADING_S = 0.25  # between two reports of one phase
UNDERWAY_S = 1.0  # between two reports of commands
COUNTERS_S = 1.0  # between two reports of counters
_MAX_IDS = limit("request_ids")

STARTING = "starting"
READING = "reading weights"
PREPARING = "preparing"
WARMING = "warming"


class LoadingProgress:
    """Reports the phases of loading, each at once and its fraction not too often."""

    def __init__(
        self, send: Callable[[Header], None], now: Callable[[], float] = time.monotonic
    ) -> None:
        self._send = send
        self._now = now
        self._phase = ""
        self._reported_at = 0.0

    def report(self, phase: str, fraction: float = -1.0) -> None:
        """Say what is being done, and how much of it is done, 0 to 1; -1 when nobody knows."""
        now = self._now()
        if phase == self._phase and fraction < 1 and now < self._reported_at + LOADING_S:
            return
        self._phase, self._reported_at = phase, now
        self._send(WorkerProgress(phase=phase, fraction=fraction))

    def read(self, fraction: float) -> None:
        """Say how much of the weights is read."""
        self.report(READING, fraction)


class Started(NamedTuple):
    """A command that takes several steps, some of which are done."""

    dispatch_id: int
    done: int
    total: int


class CommandProgress:
    """Reports commands that are under way, about once a second."""

    def __init__(
        self, send: Callable[[Header], None], now: Callable[[], float] = time.monotonic
    ) -> None:
        self._send = send
        self._now = now
        self._next_at = now() + UNDERWAY_S

    def report(self, started: Callable[[], Sequence[Started]]) -> None:
        """Tell what has `started`, which is looked at only when a report is due."""
        now = self._now()
        if now < self._next_at:
            return
        self._next_at = now + UNDERWAY_S
        found = started()[:_MAX_IDS]
        if found:
            dispatch_ids, done, total = (list(column) for column in zip(*found, strict=True))
            self._send(Underway(dispatch_ids=dispatch_ids, done=done, total=total))


class CountersReport:
    """Reports the counters after a change, at once or when the last report is a while ago."""

    def __init__(
        self,
        send: Callable[[Header], None],
        read: Callable[[], WorkerCounters],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._send = send
        self._read = read
        self._now = now
        self._next_at = now()
        self._is_due = True  # what there is of everything was not told yet

    def changed(self) -> None:
        """Something is not as it was reported."""
        self._is_due = True

    @property
    def due_in_s(self) -> float | None:
        """Until there is something to report, None while nothing is."""
        return max(0.0, self._next_at - self._now()) if self._is_due else None

    def report(self) -> None:
        """Report when it is time."""
        if not self._is_due:
            return
        now = self._now()
        if now >= self._next_at:
            self._next_at, self._is_due = now + COUNTERS_S, False
            self._send(self._read())
