"""What happens on the server, as it happens: a stream of events with room for a slow reader."""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import Disconnected, Timeout, WeftError, from_code
from .limits import limit

_MAX_EVENTS = limit("kept_events")


@dataclass(frozen=True)
class ServerEvent:
    """One thing that happened; `missed` stands for those that a slow reader has no room for."""

    name: str  # such as run_created, dispatched, done, failed, worker_ready
    fields: Mapping[str, Any]  # the particulars, such as run_id, kind and lane


class EventStream:
    """Iterates over what happens on the server from now on. Made by `ServiceClient.watch`.

    It ends when it is closed. When its reader is too slow, events are left out, and one called
    `missed` says how many. Leaving a `with` block closes it. For any thread.
    """

    def __init__(self, on_close: "Callable[[EventStream], None]") -> None:
        self._on_close = on_close
        self._changed = threading.Condition()
        self._events: deque[ServerEvent] = deque()
        self._num_missed = 0
        self._error: WeftError | None = None
        self._is_closed = False

    def get(self, timeout: float | None = None) -> ServerEvent:
        """Wait for the next event.

        Raises:
            Timeout: there was none for so many seconds.
            Disconnected: the stream is closed, or the connection is.
        """
        event = self._take(timeout)
        if event is None:
            raise Disconnected("the stream of events was closed")
        return event

    def __next__(self) -> ServerEvent:
        event = self._take(None)
        if event is None:
            raise StopIteration
        return event

    def __iter__(self) -> Iterator[ServerEvent]:
        return self

    def put(self, event: ServerEvent) -> None:
        """Take an event; never waits. Of the connection's thread."""
        with self._changed:
            # What is missed stays the end of the stream until the reader has been told of it.
            if self._num_missed or len(self._events) >= _MAX_EVENTS:
                self._num_missed += 1
            else:
                self._events.append(event)
            self._changed.notify()

    def fail(self, error: WeftError) -> None:
        """No more events will come. Of the connection's thread."""
        with self._changed:
            self._error = error
            self._changed.notify_all()

    def close(self) -> None:
        """End the stream; what it still holds can be read. Safe to repeat."""
        with self._changed:
            is_open, self._is_closed = not self._is_closed, True
            self._changed.notify_all()
        if is_open:
            self._on_close(self)

    def __enter__(self) -> "EventStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(self, timeout: float | None) -> ServerEvent | None:
        """The next event, None when the stream was closed."""
        with self._changed:
            if not self._changed.wait_for(self._has_something, timeout):
                raise Timeout(f"no event for {timeout:g} s")
            if self._events:
                return self._events.popleft()
            if self._num_missed:
                number, self._num_missed = self._num_missed, 0
                return ServerEvent("missed", {"number": number})
            if self._error is not None and not self._is_closed:
                raise from_code(self._error.code, str(self._error))
            return None

    def _has_something(self) -> bool:
        return bool(self._events or self._num_missed or self._error or self._is_closed)
