"""The thread of a connection, with its one socket: carries out what `Link` decides."""

import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent import futures
from functools import partial
from itertools import count
from math import ceil
from typing import Any

import zmq

from . import wire
from .actions import (
    Action,
    Answer,
    AnswerPart,
    Ask,
    Connect,
    Fail,
    Greeted,
    Happened,
    Lost,
    Outgoing,
    Send,
)
from .answers import read_result
from .errors import BadRequest, Busy, EngineFailed, WeftError, from_code
from .events import EventStream, ServerEvent
from .limits import limit
from .link import Link
from .messages import CloseSampler, Explain, Request, Void, Watch
from .waiting import read_reasons
from .wire import Buffer

_MAX_UNANSWERED = limit("unanswered_bytes")
_MAX_FRAME_BYTES = 4 * limit("part_bytes")
_BURST = 256  # messages read before the others are looked at
_FAREWELL_MS = 300

log = logging.getLogger("weft.client")


class Sink:
    """Where the answer of a request goes. It keeps its connection open until then."""

    __slots__ = ("convert", "num_bytes", "order", "owner", "source")

    def __init__(
        self,
        source: "futures.Future[Any]",
        convert: Callable[..., Any],
        owner: object,
    ) -> None:
        self.source = source
        self.convert = convert
        self.owner = owner
        self.num_bytes = 0
        self.order: tuple[str, int] | None = None  # of a command: run and number


class Loop:
    """The thread's own: socket, link and sinks. It starts with the first request."""

    def __init__(self, link: Link, context: "zmq.Context[Any] | None") -> None:
        self.link = link
        self.pid = os.getpid()
        self.request_ids = count(1)
        self.discarded: deque[str] = deque()
        self._waits: deque[tuple[bool, int, float]] = deque()  # is over, request, since when
        self._owns_context = context is None
        self._context = context
        self._lock = threading.Lock()
        self._submitted: deque[Outgoing] = deque()
        self._sinks: dict[int, Sink] = {}
        self._streams: weakref.WeakSet[EventStream] = weakref.WeakSet()
        self._unanswered = 0
        self._is_stopping = False
        self._is_signalled = False
        self._thread: threading.Thread | None = None
        self._bell: zmq.Socket[Any] | None = None
        # Of the thread alone:
        self._socket: zmq.Socket[Any] | None = None
        self._outbox: deque[tuple[Buffer, ...]] = deque()
        self._unsent: deque[tuple[str, int]] = deque()  # numbers of runs, to be voided
        self._poller = zmq.Poller()

    # --- from any thread --------------------------------------------------------------------------

    def check_process(self) -> None:
        """Refuse the use of a connection that a fork has copied.

        Raises:
            BadRequest: this process did not make it.
        """
        if os.getpid() != self.pid:
            raise BadRequest(
                f"this client was made in process {self.pid} and does not survive a fork into "
                f"{os.getpid()}; make or unpickle one here, or start processes with 'spawn'"
            )

    def submit(self, request: Outgoing, sink: Sink) -> None:
        num_bytes = sum(len(frame) for message in request.messages for frame in message)
        with self._lock:
            if self._is_stopping:
                raise from_code("disconnected", f"the connection to {self.link.address} is closed")
            is_full = self._unanswered and self._unanswered + num_bytes > _MAX_UNANSWERED
            if is_full and not request.cancels:  # that makes room
                raise Busy(
                    f"{self._unanswered} bytes already wait for an answer, at most "
                    f"{_MAX_UNANSWERED}; wait for some results first"
                )
            self._unanswered += num_bytes
            sink.num_bytes, sink.order = num_bytes, request.order
            self._sinks[request.request_id] = sink
            self._submitted.append(request)
            self._ring()

    def wait_began(self, request_id: int, since: float) -> None:
        """Somebody has waited for a request since then: the server is asked why, now and then."""
        self.check_process()
        self._waits.append((False, request_id, since))
        with self._lock:
            if not self._is_stopping and self._bell is not None:
                self._ring()

    def wait_ended(self, request_id: int, since: float) -> None:
        """The wait that had begun then is over."""
        self._waits.append((True, request_id, since))

    def explain(self, request_ids: tuple[int, ...]) -> "futures.Future[Any]":
        """Ask the server why requests wait; done once the link knows it."""
        self.check_process()
        outgoing, sink = self._question(request_ids)
        self.submit(outgoing, sink)
        return sink.source

    def add_stream(self, stream: EventStream) -> None:
        """Give events to a stream from now on, as long as somebody holds it."""
        with self._lock:
            self._streams.add(stream)

    def remove_stream(self, stream: EventStream) -> bool:
        """Give a stream no more events; whether none is left."""
        with self._lock:
            self._streams.discard(stream)
            return not self._streams

    def stop(self) -> None:
        with self._lock:
            self._is_stopping = True
            thread, bell = self._thread, self._bell
            if thread is None or bell is None:
                return
            self._ring()
        if thread is not threading.current_thread():
            thread.join()

    def _ring(self) -> None:
        """Wake the thread, or start it; the lock is held."""
        bell = self._bell
        if bell is None:
            if self._context is None:
                self._context = zmq.Context()
            name = f"inproc://weft-bell-{self.link.hello.session_id}"
            ear = self._context.socket(zmq.PAIR)
            ear.bind(name)
            bell = self._bell = self._context.socket(zmq.PAIR)
            bell.connect(name)
            self._thread = threading.Thread(
                target=self._run, args=(ear, bell), name="weft-client", daemon=True
            )
            self._thread.start()
        if not self._is_signalled:
            self._is_signalled = True
            bell.send(b"")

    # --- the thread -------------------------------------------------------------------------------

    def _run(self, ear: "zmq.Socket[Any]", bell: "zmq.Socket[Any]") -> None:
        self._poller.register(ear, zmq.POLLIN)
        try:
            while self._turn(ear):
                pass
        except Exception as error:
            log.exception("the connection's thread ends")
            with self._lock:
                self._is_stopping = True  # before anybody is told, and tries again
            self._fail_all(EngineFailed(f"the connection's thread failed: {error}"))
        finally:
            with self._lock:
                self._is_stopping = True
                self._thread = None
                ear.close(0)
                bell.close(0)
            if self._socket is not None:
                self._socket.close(0 if self.link.welcome is None else _FAREWELL_MS)
            self._end_streams(from_code("disconnected", "the connection was closed"))
            if self._owns_context and self._context is not None:
                self._context.term()

    def _turn(self, ear: "zmq.Socket[Any]") -> bool:
        """Wait for something, and do what follows from it."""
        deadline = self.link.deadline()
        wait_ms = None
        if deadline is not None:
            wait_ms = max(0, ceil(1000 * (deadline - time.monotonic())))
        ready = dict(self._poller.poll(wait_ms))
        now = time.monotonic()
        if ear in ready:
            submitted, is_stopping = self._take(ear)
            for request in submitted:
                self._perform(self.link.submit(request, now))
            if is_stopping:
                self._perform(self.link.close(now))
                self._flush()
                return False
        if self._socket is not None and ready.get(self._socket, 0) & zmq.POLLIN:
            self._receive(self._socket, now)
        self._close_samplers(now)
        self._void_unsent(now)
        self._note_waits()
        self._perform(self.link.tick(now))
        self._flush()
        return True

    def _close_samplers(self, now: float) -> None:
        while self.discarded:
            number = next(self.request_ids)
            self._tell(CloseSampler(request_id=number, sampler_id=self.discarded.popleft()), now)

    def _void_unsent(self, now: float) -> None:
        """Give up the numbers of commands that failed unsent, so that later ones get their turn."""
        while self._unsent and self.link.state == "ready":
            run_id, seq = self._unsent.popleft()
            number = next(self.request_ids)
            self._tell(Void(request_id=number, run_id=run_id, first_seq=seq, last_seq=seq), now)

    def _tell(self, request: Request, now: float) -> None:
        """Send a request of the connection's own; nobody looks at the answer."""
        self._sinks[request.request_id] = Sink(futures.Future(), nothing, None)
        outgoing = Outgoing(request.request_id, request.kind, ((wire.encode(request),),))
        self._perform(self.link.submit(outgoing, now))

    def _note_waits(self) -> None:
        while self._waits:
            is_over, request_id, since = self._waits.popleft()
            asking = self.link.asking
            (asking.ended if is_over else asking.began)(request_id, since)

    def _ask(self, request_ids: tuple[int, ...]) -> None:
        outgoing, sink = self._question(request_ids)
        sink.source.add_done_callback(lambda _: self.link.asking.answered())
        self._sinks[outgoing.request_id] = sink
        self._perform(self.link.submit(outgoing, time.monotonic()))

    def _question(self, request_ids: tuple[int, ...]) -> tuple[Outgoing, Sink]:
        header = Explain(request_id=next(self.request_ids), request_ids=list(request_ids))
        outgoing = Outgoing(header.request_id, header.kind, ((wire.encode(header),),))
        return outgoing, Sink(futures.Future(), partial(self._explained, request_ids), None)

    def _explained(self, request_ids: tuple[int, ...], parts: Sequence[AnswerPart]) -> None:
        self.link.explained(read_reasons(read_result(parts), request_ids))

    def _take(self, ear: "zmq.Socket[Any]") -> tuple[list[Outgoing], bool]:
        with self._lock:
            ear.recv()
            self._is_signalled = False
            submitted = list(self._submitted)
            self._submitted.clear()
            return submitted, self._is_stopping

    def _receive(self, socket: "zmq.Socket[Any]", now: float) -> None:
        for _ in range(_BURST):
            try:
                message = socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            head, *frames = [frame.buffer for frame in message]
            try:
                header = wire.decode(head)
            except BadRequest as error:
                log.warning("a message of %s was dropped: %s", self.link.address, error)
                continue
            self._perform(self.link.receive(header, frames, now))
            if self._socket is not socket:
                return  # it was thrown away

    def _perform(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Send(message):
                    self._outbox.append(message)
                case Answer(request_id, parts):
                    self._answer(request_id, parts)
                case Fail(request_id, error, is_unsent):
                    self._fail(request_id, error, is_unsent)
                case Connect():
                    self._connect()
                case Lost(error):
                    log.debug("lost: %s", error)
                    self._disconnect()
                    self._end_streams(error)
                case Ask(request_ids):
                    self._ask(request_ids)
                case Greeted(welcome):
                    log.debug("%s is %s", self.link.address, welcome.server)
                    if self._open_streams():  # the session may be a new one
                        header = Watch(request_id=next(self.request_ids), enabled=True)
                        self._tell(header, time.monotonic())
                case Happened(event):
                    for stream in self._open_streams():
                        stream.put(ServerEvent(event.name, event.fields))

    def _open_streams(self) -> list[EventStream]:
        with self._lock:
            return list(self._streams)

    def _end_streams(self, error: WeftError) -> None:
        for stream in self._open_streams():
            stream.fail(error)
            self.remove_stream(stream)

    def _flush(self) -> None:
        socket = self._socket
        if socket is None:
            return
        try:
            while self._outbox:
                socket.send_multipart(self._outbox[0], zmq.NOBLOCK, copy=False)
                self._outbox.popleft()
        except zmq.Again:
            self._poller.register(socket, zmq.POLLIN | zmq.POLLOUT)
        else:
            self._poller.register(socket, zmq.POLLIN)

    def _connect(self) -> None:
        self._disconnect()
        assert self._context is not None
        socket = self._socket = self._context.socket(zmq.DEALER)
        socket.linger = 0
        socket.setsockopt(zmq.MAXMSGSIZE, _MAX_FRAME_BYTES)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        socket.connect(self.link.address)
        self._poller.register(socket, zmq.POLLIN)

    def _disconnect(self) -> None:
        self._outbox.clear()
        if self._socket is not None:
            self._poller.unregister(self._socket)
            self._socket.close(0)
            self._socket = None

    def _answer(self, request_id: int, parts: tuple[AnswerPart, ...]) -> None:
        sink = self._forget(request_id)
        try:
            result = sink.convert(parts)
        except EngineFailed as error:
            _settle(sink.source, error=error)
        except Exception as error:  # whatever it is, the caller did not cause it
            log.exception("an answer could not be read")
            _settle(sink.source, error=EngineFailed(f"unexpected answer: {error!r}"))
        else:
            _settle(sink.source, result)

    def _fail(self, request_id: int, error: WeftError, is_unsent: bool = False) -> None:
        # Each waiter has its own exception: traceback and notes are not shared.
        own = from_code(error.code, str(error)) if error.code else error
        sink = self._forget(request_id)
        if is_unsent and sink.order is not None:
            self._unsent.append(sink.order)
        _settle(sink.source, error=own)

    def _fail_all(self, error: WeftError) -> None:
        for request_id in list(self._sinks):
            self._fail(request_id, error)

    def _forget(self, request_id: int) -> Sink:
        with self._lock:
            sink = self._sinks.pop(request_id)
            self._unanswered -= sink.num_bytes
        sink.owner = None  # before the caller knows: what it drops then is dropped in its thread
        return sink


def nothing(parts: tuple[AnswerPart, ...]) -> None:
    """The result of an answer that only says that it was done."""


def _settle(
    source: "futures.Future[Any]", result: object = None, error: WeftError | None = None
) -> None:
    """Resolve a future, unless somebody has cancelled it."""
    if not source.set_running_or_notify_cancel():
        return
    if error is not None:
        source.set_exception(error)
    else:
        source.set_result(result)
