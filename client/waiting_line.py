"""One line of a terminal that says what a program waits for, rewritten in place."""

import shutil
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TextIO

REFRESH_S = 0.5
_DRAWN_AGAIN_S = 0.2  # redraws closer together than this are left out

# Whether a wait in another thread is one that the main thread asked for.
_asked_by_main: ContextVar[bool] = ContextVar("asked_by_main", default=False)


def is_main_wait() -> bool:
    """Whether the wait that begins here is the main thread's own, or done for it."""
    return threading.current_thread() is threading.main_thread() or _asked_by_main.get()


@contextmanager
def on_behalf_of_this_thread() -> Generator[None]:
    """Let waits in threads that copy this context count as this thread's."""
    token = _asked_by_main.set(is_main_wait())
    try:
        yield
    finally:
        _asked_by_main.reset(token)


def find_terminal() -> TextIO | None:
    """stderr if it is a terminal; in notebooks, pipes and files it is none."""
    stream = sys.stderr
    try:
        return stream if stream is not None and stream.isatty() else None
    except ValueError:  # closed
        return None


class WaitingLine:
    """Shows the longest of some waits on stderr while that is a terminal.

    Args:
        is_wanted: False shows nothing.
        now: the seconds of a clock.
        terminal: where the line goes, None for nowhere.
    """

    def __init__(
        self,
        is_wanted: bool,
        now: Callable[[], float] = time.monotonic,
        terminal: Callable[[], TextIO | None] = find_terminal,
    ) -> None:
        self._is_wanted = is_wanted
        self._now = now
        self._terminal = terminal
        self._lock = threading.Lock()
        self._waits: dict[int, tuple[float, Callable[[], str]]] = {}  # by key: since, text
        self._num_waits = 0
        self._drawn = ""
        self._drawn_at = 0.0

    def begin(self, since: float, describe: Callable[[], str]) -> int | None:
        """Show a wait from now on; returns its key, None when it is not shown."""
        if not self._is_wanted or self._terminal() is None or not is_main_wait():
            return None
        with self._lock:
            self._num_waits += 1
            self._waits[self._num_waits] = (since, describe)
            return self._num_waits

    def refresh(self) -> None:
        """Draw the line anew, as often as this may be called."""
        with self._lock:
            now = self._now()
            if not self._waits or (self._drawn and now < self._drawn_at + _DRAWN_AGAIN_S):
                return
            since, describe = next(iter(self._waits.values()))
            more = f" and {len(self._waits) - 1} more" if len(self._waits) > 1 else ""
            self._drawn_at = now
            self._draw(f"weft: {describe()}{more} ({now - since:.0f} s)")

    def end(self, key: int | None) -> None:
        """Show a wait no more; after the last the line is cleared."""
        with self._lock:
            if key is not None:
                del self._waits[key]
            if self._drawn and not self._waits:
                self._draw("")

    def _draw(self, text: str) -> None:
        stream = self._terminal()
        if stream is None:
            return
        columns = max(shutil.get_terminal_size().columns - 1, 1)  # a wrapped line would stay
        text = text if len(text) <= columns else text[: max(columns - 3, 0)] + "..."
        padding = " " * (len(self._drawn) - len(text))
        with suppress(OSError, ValueError):  # the terminal has gone
            stream.write(f"\r{text}{padding}" + ("" if text else "\r"))
            stream.flush()
        self._drawn = text
