"""Bounds on connections, where aiohttp has none: how many there are, and how slow they may be.

A request's headers must be complete, and a connection's next request have begun, within `idle_s`
(aiohttp's keep-alive timeout covers both); whoever reads a response takes some within `stall_s`.
"""

import asyncio
import logging
from collections.abc import Callable
from http import HTTPStatus

import msgspec
from aiohttp import web

from ...client.limits import LIMITS, limit

log = logging.getLogger(__name__)

MAX_CONNECTIONS = limit("connections")
IDLE_S = LIMITS["idle_s"].default
STALL_S = LIMITS["stall_s"].default
LINGER_S = 2.0  # how long the rest of a refused body is read, for its sender to see the answer
REFUSED_S = 1.0  # until a refused connection is cut off
_MAX_REFUSED = 256  # that are told so at a time


class Connections:
    """The connections of one server; makes the protocol of each new one.

    Args:
        server: of the application's runner.
        max_connections: at a time.
        idle_s: see `limits`.
        stall_s: see `limits`.
    """

    def __init__(
        self,
        server: web.Server,
        max_connections: int = MAX_CONNECTIONS,
        idle_s: float = IDLE_S,
        stall_s: float = STALL_S,
    ) -> None:
        self._server = server
        self._max = max_connections
        self._idle_s = idle_s
        self._stall_s = stall_s
        self._open: set[_Connection] = set()
        self._num_refused = 0

    def __len__(self) -> int:
        return len(self._open)

    def __call__(self) -> asyncio.Protocol:
        if len(self._open) < self._max:
            return _Connection(self._server, self._open, self._idle_s, self._stall_s)
        return _Refused(self._count_refused, self._num_refused < _MAX_REFUSED)

    def _count_refused(self, change: int) -> None:
        self._num_refused += change


class _Connection(web.RequestHandler):
    """A connection that is served."""

    __slots__ = ("_others", "_stall", "_stall_s")

    def __init__(
        self, server: web.Server, others: "set[_Connection]", idle_s: float, stall_s: float
    ) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=idle_s,
            access_log=None,  # type: ignore[arg-type]  # none, as the runner would pass it
            auto_decompress=False,
            lingering_time=LINGER_S,
        )
        self._others = others
        self._stall: asyncio.TimerHandle | None = None
        self._stall_s = stall_s

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._others.add(self)
        super().connection_made(transport)

    def connection_lost(self, error: BaseException | None) -> None:
        self._others.discard(self)
        self._end_stall()
        super().connection_lost(error)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.transport is not None:
            loop = asyncio.get_running_loop()
            self._stall = loop.call_later(self._stall_s, self.transport.abort)

    def resume_writing(self) -> None:
        self._end_stall()
        super().resume_writing()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is no HTTP. Its bytes can hold a key: they are neither logged nor repeated."""
        if request.writer.output_size:
            raise ConnectionError("an answer broke off")
        if status < HTTPStatus.INTERNAL_SERVER_ERROR:
            log.info("a request was no HTTP: %s", type(exc).__name__)
            told = {"error": "this is not HTTP/1.1", "code": "malformed"}
        else:
            self.log_exception(exc_info=exc)
            told = {"error": "a fault of the gateway", "code": "internal"}
        response = web.Response(
            body=msgspec.json.encode(told), status=status, content_type="application/json"
        )
        response.force_close()
        return response

    def log_exception(self, *args: object, **kwargs: object) -> None:
        """Log that there was one; the words of an exception can hold a key."""
        error = kwargs.get("exc_info")
        log.error("a connection failed: %s", type(error).__name__)

    def _end_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None


class _Refused(asyncio.Protocol):
    """A connection over the limit: it is told so, and what it says is not read."""

    def __init__(self, count: Callable[[int], None], is_told: bool) -> None:
        self._count = count
        self._is_told = is_told
        self._end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._count(1)
        if not self._is_told:
            transport.abort()
            return
        transport.write(_TOO_MANY)
        # Closing at once would reset the connection, and the answer might be lost on its way.
        loop = asyncio.get_running_loop()
        self._end = loop.call_later(REFUSED_S, transport.abort)

    def connection_lost(self, error: BaseException | None) -> None:
        self._count(-1)
        if self._end is not None:
            self._end.cancel()


_BODY = msgspec.json.encode({"error": "too many connections are open", "code": "busy"})
_TOO_MANY = (
    b"HTTP/1.1 503 Service Unavailable\r\n"
    b"Content-Type: application/json\r\n"
    b"Content-Length: %d\r\n"
    b"Retry-After: 1\r\n"
    b"X-Should-Retry: true\r\n"
    b"Connection: close\r\n"
    b"\r\n%b"
) % (len(_BODY), _BODY)
