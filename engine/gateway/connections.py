"""Bounds on connections, where aiohttp has none: how many there are, and how slow they may be.

A request's headers must be complete, and a connection's next request have begun, within `idle_s`
(aiohttp's keep-alive timeout covers both); whoever reads a response takes some within `stall_s`.
"""

import asyncio
import logging
import resource
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


def num_connections() -> int:
    """How many connections there may be: half of the open files are for the lines to the broker."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else min(MAX_CONNECTIONS, soft // 2)


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
        self.server = server
        self.max_connections = max_connections
        self.idle_s = idle_s
        self.stall_s = stall_s
        self.served: set[_Connection] = set()
        self.refused: set[_Connection] = set()
        self.is_closed = False

    def __len__(self) -> int:
        return len(self.served)

    def __call__(self) -> asyncio.Protocol:
        return _Connection(self)

    def close(self) -> None:
        """Cut off those that are left, and those that were accepted and not yet made."""
        self.is_closed = True
        for connection in (*self.served, *self.refused):
            connection.cut_off()


class _Connection(web.RequestHandler):
    """A connection that is served, or, over the limit, told so; what it says then is not read."""

    __slots__ = ("_all", "_end", "cut_off")

    def __init__(self, all_of_them: Connections) -> None:
        super().__init__(
            all_of_them.server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=all_of_them.idle_s,
            access_log=None,  # type: ignore[arg-type]  # none, as the runner would pass it
            auto_decompress=False,
            lingering_time=LINGER_S,
        )
        self._all = all_of_them
        self._end: asyncio.TimerHandle | None = None  # when it is cut off
        self.cut_off: Callable[[], None] = lambda: None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.cut_off = transport.abort
        # Not earlier: many can be accepted before any is made.
        if len(self._all.served) < self._all.max_connections and not self._all.is_closed:
            self._all.served.add(self)
            super().connection_made(transport)
        else:
            self._refuse(transport)

    def connection_lost(self, error: BaseException | None) -> None:
        self._end_stall()
        if self in self._all.refused:
            self._all.refused.remove(self)
        else:
            self._all.served.discard(self)
            super().connection_lost(error)

    def data_received(self, data: bytes) -> None:
        if self not in self._all.refused:
            super().data_received(data)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._end = asyncio.get_running_loop().call_later(self._all.stall_s, self.cut_off)

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

    def _refuse(self, transport: asyncio.Transport) -> None:
        self._all.refused.add(self)
        if self._all.is_closed or len(self._all.refused) > _MAX_REFUSED:
            transport.abort()
            return
        transport.write(_TOO_MANY)
        # Closing at once would reset the connection, and the answer might be lost on its way.
        self._end = asyncio.get_running_loop().call_later(REFUSED_S, self.cut_off)

    def _end_stall(self) -> None:
        if self._end is not None:
            self._end.cancel()
            self._end = None


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
