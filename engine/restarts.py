"""Whether a process that died is started again, and when. Pure: deaths and the time go in."""

from collections import deque
from dataclasses import dataclass

from ..client.limits import LIMITS, limit

FIRST_PAUSE_S = 0.5
MAX_PAUSE_S = 30.0


@dataclass(frozen=True, slots=True)
class Restart:
    """Start it again after a pause."""

    after_s: float
    number: int  # of restarts within the window, from 1
    most: int


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Start it no more."""

    detail: str


class Restarts:
    """Remembers recent deaths: each costs a longer pause, and too many end it.

    Args:
        what: the process, in words.
        most: restarts within the window.
        window_s: deaths longer ago are forgotten.
    """

    def __init__(
        self,
        what: str = "the worker",
        most: int = limit("worker_restarts"),
        window_s: float = LIMITS["restart_window_s"].default,
    ) -> None:
        self._what = what
        self._most = most
        self._window_s = window_s
        self._deaths: deque[float] = deque()

    def died(self, now: float) -> Restart | GiveUp:
        """It has died."""
        while self._deaths and now - self._deaths[0] > self._window_s:
            self._deaths.popleft()
        self._deaths.append(now)
        number = len(self._deaths)
        if number > self._most:
            return GiveUp(f"{self._what} died {number} times within {self._window_s:.0f} s")
        return Restart(min(FIRST_PAUSE_S * 2 ** (number - 1), MAX_PAUSE_S), number, self._most)
