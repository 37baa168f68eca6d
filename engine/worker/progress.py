"""What a worker tells the broker unasked: how far its loading is, and its longer commands."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ...client.limits import limit
from ...client.messages import Header
from ...client.worker_messages import Underway, WorkerProgress

LOADING_S = 0.25  # between two reports of one phase
UNDERWAY_S = 1.0  # between two reports of commands
_MAX_IDS = limit("request_ids")

STARTING = "starting"
READING = "reading weights"
PREPARING = "preparing"


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
