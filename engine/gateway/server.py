"""A running gateway: listens, serves, sweeps, and ends."""

import asyncio
import logging
import ssl
import time
from collections.abc import Sequence
from functools import partial

import zmq
from aiohttp import web

from ...client.errors import BadRequest, Disconnected, WeftError
from ...client.messages import Query
from .app import make_app, response_of
from .call import Gateway, Reply, Route, json_reply
from .config import GatewayConfig
from .connections import Connections, num_connections
from .counters import GatewayCounters
from .doors import Doors
from .downloads import FileLinks
from .file_routes import send_file
from .health import Health, alive, readiness
from .prometheus import CONTENT_TYPE, exposition
from .routes import ROUTES
from .sessions import Sessions

log = logging.getLogger(__name__)

SWEEP_S = 10.0
ASK_S = 2.0  # the longest a health or metrics request waits for the broker
STOP_S = 3.0  # what requests under way get at the end
HANDSHAKE_S = 10.0  # of TLS
BACKLOG = 1024  # connections that wait to be accepted


class GatewayServer:
    """A gateway in the running asyncio loop.

        server = GatewayServer(GatewayConfig(broker=address, listen="127.0.0.1:0"))
        await server.start()
        print(server.url)
        await server.stop()

    Raises:
        BadRequest: the address cannot be taken, or the certificate not be read.
    """

    def __init__(
        self, config: GatewayConfig, version: str = "", routes: Sequence[Route] = ROUTES
    ) -> None:
        self.config = config
        self.url = ""  # once it has started
        self._version = version
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, 8192)  # one a line
        self._gateway = Gateway(
            doors=Doors(self._context, config.broker),
            sessions=Sessions(self._context, config.broker),
            counters=GatewayCounters(),
            links=FileLinks(),
            poll_s=config.poll_s,
            public_url=config.public_url.rstrip("/"),
        )
        app = make_app(self._gateway, routes)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/files/{token}/{name}", partial(send_file, self._gateway))
        self._runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=STOP_S
        )
        self._listener: asyncio.Server | None = None
        self._connections: Connections | None = None
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to answer."""
        host, port = self.config.address
        tls = _tls(self.config)
        if not (self.config.is_near or self.config.insecure or self.config.has_keys):
            await self._require_keys()
        await self._runner.setup()
        assert self._runner.server is not None
        self._connections = Connections(self._runner.server, num_connections())
        handshake_s = None if tls is None else HANDSHAKE_S
        try:
            self._listener = await asyncio.get_running_loop().create_server(
                self._connections,
                host,
                port,
                ssl=tls,
                ssl_handshake_timeout=handshake_s,
                backlog=BACKLOG,
            )
        except OSError as error:
            detail = f"cannot listen on {self.config.listen}: {error.strerror or error}"
            raise BadRequest(detail, "conflict") from None
        taken = self._listener.sockets[0].getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        self.url = f"{'http' if tls is None else 'https'}://{shown}:{taken}"
        self._sweeper = asyncio.create_task(self._sweep())

    async def stop(self) -> None:
        """End; the sessions live on at the broker. Safe to repeat."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        if self._listener is not None:
            self._listener.close()
        self._gateway.sessions.wake()
        await self._runner.cleanup()
        if self._connections is not None:
            self._connections.close()
        self._gateway.sessions.close()
        self._gateway.doors.close()
        self._context.destroy(linger=0)

    async def _require_keys(self) -> None:
        """Refuse to be reached from other machines while whoever comes is the same tenant."""
        try:
            await self._gateway.doors.admit("")
        except WeftError as error:
            if error.code == "unauthorized":
                return
            raise
        raise BadRequest(
            f"{self.config.public_url or self.config.listen} can be reached from other machines, and the broker has no API "
            "keys; make one with `weft key create`, or pass --insecure"
        )

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            now = time.monotonic()
            try:
                self._gateway.sessions.sweep(now)
                self._gateway.doors.sweep(now)
            except Exception:  # the boundary of the task: what it frees would grow for ever
                log.exception("a sweep failed")

    async def _ask(self, what: str) -> dict[str, object] | WeftError:
        """Query the broker in the gateway's own name; why, when there is no answer in time."""
        try:
            async with asyncio.timeout(ASK_S):
                door = await self._gateway.doors.admit(self.config.api_key)
                line = door.line
                return await line.request(Query(request_id=line.new_number(), what=what))
        except WeftError as error:
            failure = error
        except TimeoutError:
            failure = Disconnected(f"no answer within {ASK_S:g} s")
        log.info("the broker did not answer %s: %s", what, failure.code)
        return failure

    async def _healthz(self, request: web.Request) -> web.Response:
        return _health_response(alive())

    async def _readyz(self, request: web.Request) -> web.Response:
        return _health_response(readiness(await self._ask("capabilities")))

    async def _metrics(self, request: web.Request) -> web.Response:
        counters, sessions = self._gateway.counters, self._gateway.sessions
        counters.futures = sessions.num_futures
        counters.future_bytes = sessions.kept.num_bytes
        counters.lines = len(sessions) + len(self._gateway.doors)
        told = await self._ask("metrics")
        figures = None if isinstance(told, WeftError) else told
        text = exposition(figures, counters, self._version)
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE})


def _health_response(health: Health) -> web.Response:
    return response_of(Reply(json_reply(health.body).body, status=health.status))


def _tls(config: GatewayConfig) -> ssl.SSLContext | None:
    if not config.tls_cert:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(config.tls_cert, config.tls_key)
    except (OSError, ssl.SSLError) as error:
        detail = f"cannot read the certificate {config.tls_cert}: {error}"
        raise BadRequest(detail) from None
    return context
