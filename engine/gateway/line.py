"""A connection to the broker inside an asyncio loop: `client.link.Link` decides, this carries out.

    line = Line(context, address, hello, on_lost)
    parts = await line.request(Query(request_id=line.new_number(), what="runs"))

One DEALER socket a line, no thread. Everything here runs in the loop's thread.
"""

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import Any

import zmq

from ...client import wire
from ...client.actions import (
    Action,
    Answer,
    AnswerPart,
    Ask,
    Connect,
    Fail,
    Greeted,
    Lost,
    Outgoing,
    Send,
)
from ...client.answers import read_result
from ...client.errors import BadRequest, WeftError, from_code
from ...client.limits import LIMITS, limit
from ...client.link import Link
from ...client.messages import Cancel, Command, Explain, Hello, Request, Void, Welcome
from ...client.waiting import Reason, read_reasons
from ...client.wire import Buffer

log = logging.getLogger(__name__)

Parts = tuple[AnswerPart, ...]

_MAX_FRAME_BYTES = 4 * limit("part_bytes")
_BURST = 256  # messages read before other lines have their turn
_FAREWELL_MS = 300
_PATIENCE_S = LIMITS["connect_s"].default


class Line:
    """One session with the broker."""

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        address: str,
        hello: Hello,
        on_lost: Callable[["Line", WeftError], None] = lambda line, error: None,
        on_bytes: Callable[[int], None] = lambda change: None,
    ) -> None:
        """Nothing is sent before the first request.

        Args:
            context: of all lines.
            address: of the broker, tcp:// or ipc://.
            hello: what is said first.
            on_lost: called once when the line has ended and not by `close`.
            on_bytes: told how many bytes of requests without an answer there are more, or less.
        """
        self.session_id = hello.session_id
        self._context = context
        self._link = Link(hello, address)
        self._on_lost = on_lost
        self._on_bytes = on_bytes
        self._loop = asyncio.get_running_loop()
        # From anywhere: a gateway before this one may have asked in the same session.
        self._numbers = count(1 + secrets.randbelow(1 << 60))
        self._silent_since: float | None = None  # while the broker is not reached
        self._waiting: dict[int, _Waiting] = {}
        self._outbox: deque[tuple[Buffer, ...]] = deque()
        self._unsent: deque[tuple[str, int]] = deque()  # numbers of runs, to be voided
        self._socket: zmq.Socket[bytes] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_turning = False  # a turn is scheduled
        self.is_closed = False

    def __len__(self) -> int:
        """Requests without an answer."""
        return len(self._waiting)

    def new_number(self) -> int:
        """A number for a request of the line's own; those of SDK requests are above 2**61."""
        return next(self._numbers)

    @property
    def welcome(self) -> Welcome | None:
        """What the broker said when it was reached last; None before."""
        return self._link.welcome

    async def request(self, header: Request) -> dict[str, Any]:
        """Send a request without arrays, and wait for the plain data of its answer.

        Raises:
            WeftError: the request failed.
            Disconnected: the broker has not been reached for a while.
        """
        self._require_broker()
        answer = self.send([header], [()])
        while not answer.done():
            await asyncio.wait([answer], timeout=_PATIENCE_S)
            if not answer.done():
                self._require_broker()
        parts = answer.result()
        return read_result(parts) if parts else {}  # a cancel that was settled here has no parts

    def send(
        self, headers: Sequence[Request], frames: Sequence[Sequence[Buffer]]
    ) -> "asyncio.Future[Parts]":
        """Send a request, one header and its frames a part, all with the same request_id.

        Commands and samples get their digest here. The future fails with a WeftError.

        Raises:
            BadRequest: a header over its limit.
        """
        messages = tuple(
            (wire.encode_request(header, parts), *parts)
            for header, parts in zip(headers, frames, strict=True)
        )
        return self.post(headers[0], messages)

    def post(
        self, first: Request, messages: tuple[tuple[Buffer, ...], ...]
    ) -> "asyncio.Future[Parts]":
        """Send a request that is encoded; `first` is its first header."""
        order = (first.run_id, first.seq) if isinstance(first, Command) else None
        cancels = first.target_id if isinstance(first, Cancel) else 0
        outgoing = Outgoing(first.request_id, first.kind, messages, order, cancels)
        future: asyncio.Future[Parts] = self._loop.create_future()
        future.add_done_callback(_look)
        num_bytes = sum(len(frame) for message in messages for frame in message)
        self._on_bytes(num_bytes)
        self._waiting[outgoing.request_id] = _Waiting(future, num_bytes, order)
        if self.is_closed:
            self._fail(outgoing.request_id, from_code("disconnected", "the line has ended"))
            return future
        self._perform(self._link.submit(outgoing, time.monotonic()))
        self._turn_soon()
        return future

    def void(self, run_id: str, seq: int) -> None:
        """Use up the number of a command that will not be sent."""
        self._tell(Void(request_id=self.new_number(), run_id=run_id, first_seq=seq, last_seq=seq))

    def wait_began(self, number: int, since: float) -> None:
        """Somebody waits for a request since then: the broker is asked why, now and then."""
        self._link.asking.began(number, since)
        self._turn_soon()

    def wait_ended(self, number: int, since: float) -> None:
        """The wait that began then is over."""
        self._link.asking.ended(number, since)

    def reason(self, number: int) -> Reason | None:
        """Why a request waits, as far as it is known; None when it does not wait."""
        return self._link.reason(number, time.monotonic())

    def close(self, ending: str = "") -> None:
        """Say goodbye: the session ends, and why. Safe to repeat."""
        if not self.is_closed:
            self.is_closed = True
            self._perform(self._link.close(time.monotonic(), ending))
            self._flush()
            self._end()

    def drop(self) -> None:
        """End the line; the session lives on at the broker. Safe to repeat."""
        if not self.is_closed:
            self.is_closed = True
            error = from_code("disconnected", "the line was dropped")
            for number in list(self._waiting):
                self._fail(number, error)
            self._end()

    # --- a turn -----------------------------------------------------------------------------------

    def _turn_soon(self) -> None:
        if not self._is_turning and not self.is_closed:
            self._is_turning = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """Read what has come, do what is due, send what is ready."""
        self._is_turning = False
        if self.is_closed:
            return
        self._receive()
        now = time.monotonic()
        while self._unsent and self._link.state == "ready":
            self.void(*self._unsent.popleft())
        self._perform(self._link.tick(now))
        self._flush()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self._link.deadline()
        if deadline is not None and not self.is_closed:
            self._timer = self._loop.call_later(max(0.0, deadline - now), self._turn)
        # The descriptor tells of changes only: what can be done already needs another turn.
        if self._socket is not None:
            wanted = zmq.POLLIN | (zmq.POLLOUT if self._outbox else 0)
            if int(self._socket.getsockopt(zmq.EVENTS)) & wanted:
                self._turn_soon()

    def _receive(self) -> None:
        socket = self._socket
        for _ in range(_BURST):
            if socket is None or self._socket is not socket:
                return
            try:
                message = socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            head, *frames = [frame.buffer for frame in message]
            try:
                header = wire.decode(head)
            except BadRequest as error:
                log.warning("a message of the broker was dropped: %s", error)
                continue
            self._perform(self._link.receive(header, frames, time.monotonic()))

    def _flush(self) -> None:
        socket = self._socket
        while socket is not None and self._outbox:
            try:
                socket.send_multipart(self._outbox[0], zmq.NOBLOCK, copy=False)
            except zmq.Again:  # the descriptor becomes readable when there is room again
                return
            self._outbox.popleft()

    def _perform(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Send(message):
                    self._outbox.append(message)
                case Answer(number, parts):
                    waiting = self._forget(number)
                    if not waiting.future.done():
                        waiting.future.set_result(parts)
                case Fail(number, error, is_unsent):
                    self._fail(number, error, is_unsent)
                case Connect():
                    self._connect()
                case Ask(numbers):
                    self._ask(numbers)
                case Greeted():
                    self._silent_since = None
                case Lost(error):
                    self._lost(error)
                case _:  # what happens concerns nobody here
                    pass

    def _connect(self) -> None:
        self._disconnect()
        if self._silent_since is None:
            self._silent_since = time.monotonic()
        socket = self._socket = self._context.socket(zmq.DEALER)
        socket.linger = 0
        socket.setsockopt(zmq.MAXMSGSIZE, _MAX_FRAME_BYTES)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        socket.connect(self._link.address)
        self._loop.add_reader(socket.FD, self._turn_soon)

    def _require_broker(self) -> None:
        """Raise Disconnected when whoever asks now would wait in vain."""
        since = self._silent_since
        if since is not None and time.monotonic() - since > _PATIENCE_S:
            silent = f"{time.monotonic() - since:.0f} s"
            detail = f"the server has not answered for {silent}"
            raise from_code("disconnected", detail)

    def _disconnect(self, linger_ms: int = 0) -> None:
        self._outbox.clear()
        socket, self._socket = self._socket, None
        if socket is not None:
            self._loop.remove_reader(socket.FD)
            socket.close(linger_ms)

    def _lost(self, error: WeftError) -> None:
        self.is_closed = True
        self._end()
        self._on_lost(self, error)

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._disconnect(_FAREWELL_MS)

    # --- requests of the line's own ---------------------------------------------------------------

    def _tell(self, header: Request) -> "asyncio.Future[Parts]":
        return self.post(header, ((wire.encode(header),),))

    def _ask(self, numbers: tuple[int, ...]) -> None:
        asked = self._tell(Explain(request_id=self.new_number(), request_ids=list(numbers)))
        asked.add_done_callback(partial(self._explained, numbers))

    def _explained(self, numbers: tuple[int, ...], asked: "asyncio.Future[Parts]") -> None:
        self._link.asking.answered()
        self._turn_soon()  # the next question may be due before anything else is
        if not asked.cancelled() and asked.exception() is None:
            self._link.explained(read_reasons(read_result(asked.result()), numbers))

    # --- ends of requests -------------------------------------------------------------------------

    def _fail(self, number: int, error: WeftError, is_unsent: bool = False) -> None:
        waiting = self._forget(number)
        if is_unsent and waiting.order is not None:
            self._unsent.append(waiting.order)
        if not waiting.future.done():
            waiting.future.set_exception(from_code(error.code, str(error)))

    def _forget(self, number: int) -> "_Waiting":
        waiting = self._waiting.pop(number)
        self._on_bytes(-waiting.num_bytes)
        return waiting


class _Waiting:
    """A request without an answer."""

    __slots__ = ("future", "num_bytes", "order")

    def __init__(
        self, future: "asyncio.Future[Parts]", num_bytes: int, order: tuple[str, int] | None
    ) -> None:
        self.future = future
        self.num_bytes = num_bytes
        self.order = order  # of a command: run and number


def _look(future: "asyncio.Future[Parts]") -> None:
    """An answer that nobody fetches is no fault of the program."""
    if not future.cancelled():
        future.exception()
