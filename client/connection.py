"""A session with a broker, for any thread of one process; `loop.py` has its thread."""

import os
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from contextlib import suppress
from itertools import count
from typing import Any, TypeVar

import zmq

from . import wire
from .actions import AnswerPart, Outgoing
from .errors import BadRequest, Disconnected
from .events import EventStream
from .futures import APIFuture
from .link import CLIENT, Link
from .loop import Loop, Sink, nothing
from .messages import SPOKEN_VERSIONS, Command, Hello, Request, Watch, Welcome
from .waiting_line import WaitingLine
from .watching import RequestWatch
from .wire import Buffer

T = TypeVar("T")

_SCHEMES = ("tcp://", "ipc://", "inproc://")


class Connection:
    """A session with a broker.

    Nothing is opened before the first request. Any thread may use it, but only in the process that
    made it.

    Args:
        address: tcp://, ipc:// or, with the broker's `context`, inproc://.
        api_key: "" where the server asks for none.
        user_metadata: told to the server with the first message.
        display_name: told to it, too.
        context: the ZeroMQ context to use; None makes one.
        show_waiting: say in a terminal what the main thread waits for.

    Raises:
        BadRequest: no such kind of address.
    """

    def __init__(
        self,
        address: str,
        api_key: str = "",
        *,
        user_metadata: Mapping[str, str] | None = None,
        display_name: str = "",
        context: "zmq.Context[Any] | None" = None,
        show_waiting: bool = False,
    ) -> None:
        if not address.startswith(_SCHEMES):
            raise BadRequest(f"address {address!r} is not of the form tcp://host:port")
        if address.startswith("inproc://") and context is None:
            raise BadRequest(f"address {address!r} needs the context of the engine")
        self.address = address
        self.session_id = uuid.uuid4().hex
        self.run_numbers = count()
        self.sampler_numbers = count()
        hello = Hello(
            versions=list(SPOKEN_VERSIONS),
            session_id=self.session_id,
            api_key=api_key,
            client=CLIENT,
            user_metadata=dict(user_metadata or {}),
            display_name=display_name,
        )
        self._loop = Loop(Link(hello, address), context)
        self.shows_waiting = show_waiting
        self._line = WaitingLine(show_waiting)
        self._watch_lock = threading.Lock()  # each Watch goes out as its stream comes or goes
        self._finalizer = weakref.finalize(self, _stop, self._loop)

    def new_request_id(self) -> int:
        """A number for a request; every one is used once."""
        return next(self._loop.request_ids)

    def discard_sampler(self, sampler_id: str) -> None:
        """Close a sampler soon. May run in a finalizer: it takes no lock and cannot fail."""
        self._loop.discarded.append(sampler_id)

    def send(
        self,
        headers: Sequence[Request],
        frames: Sequence[Sequence[Buffer]],
        convert: Callable[[tuple[AnswerPart, ...]], T],
    ) -> APIFuture[T]:
        """Send a request, one header and its frames a part, all with the same request_id.

        Args:
            headers: commands and samples get their digest here.
            frames: owned by the connection from here on.
            convert: makes the result of the answer, in the connection's thread.

        Raises:
            BadRequest: a header over its limit, or a process that was forked from the one that
                made this connection.
            Busy: more than `unanswered_bytes` already wait for an answer.
        """
        self.check_process()
        messages = tuple(
            (wire.encode_request(header, parts), *parts)
            for header, parts in zip(headers, frames, strict=True)
        )
        first = headers[0]
        order = (first.run_id, first.seq) if isinstance(first, Command) else None
        outgoing = Outgoing(first.request_id, first.kind, messages, order)
        source: futures.Future[T] = futures.Future()
        self._loop.submit(outgoing, Sink(source, convert, self))
        link, number = self._loop.link, outgoing.request_id
        watch = RequestWatch(self._loop, self._line, number)
        return APIFuture(source, lambda: link.describe(number, time.monotonic()), watch)

    def watch(self) -> EventStream:
        """A stream of what happens on the server from now on; waits for the server.

        Raises:
            Busy: too many clients watch.
        """
        stream = EventStream(self._unwatch)
        try:
            with self._watch_lock:
                self._loop.add_stream(stream)
                sent = self._send_watch(True)
            sent.result()
        except BaseException:
            self._loop.remove_stream(stream)
            raise
        return stream

    def _unwatch(self, stream: EventStream) -> None:
        with self._watch_lock:
            if self._loop.remove_stream(stream):
                with suppress(Disconnected):  # the session has ended
                    self._send_watch(False)

    def _send_watch(self, enabled: bool) -> APIFuture[None]:
        header = Watch(request_id=self.new_request_id(), enabled=enabled)
        return self.send([header], [()], nothing)

    def welcome(self) -> Welcome | None:
        """What the server said when it was reached last; None before."""
        return self._loop.link.welcome

    def check_process(self) -> None:
        """Refuse the use of a connection that a fork has copied.

        Raises:
            BadRequest: this process did not make it.
        """
        self._loop.check_process()

    @property
    def is_closed(self) -> bool:
        return not self._finalizer.alive

    def close(self) -> None:
        """End the session; what is not answered fails. Safe to repeat."""
        if os.getpid() == self._loop.pid:
            self._finalizer()


def _stop(loop: Loop) -> None:
    if os.getpid() == loop.pid:
        loop.stop()


# --- one connection for all clients that were unpickled in a process ------------------------------

_shared: "weakref.WeakValueDictionary[tuple[int, str, str], Connection]" = (
    weakref.WeakValueDictionary()
)
_shared_lock = threading.Lock()


def shared_connection(address: str, api_key: str) -> Connection:
    """The connection of this process to an address, for clients that arrive pickled.

    It closes when the last of them is gone. It shows nothing: such processes are often many.
    """
    with _shared_lock:
        key = (os.getpid(), address, api_key)
        connection = _shared.get(key)
        if connection is None or connection.is_closed:
            connection = _shared[key] = Connection(address, api_key)
        return connection
