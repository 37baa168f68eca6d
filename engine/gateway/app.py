"""The HTTP side: one application around the routes, with what holds for every request.

A request is admitted by its key, its body read within bounds, its route called; an error becomes
a status that the SDK understands. What is logged are ids, never a key, a body or a header.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from aiohttp import web

from ...client.errors import BadRequest, Busy, EngineFailed, NotFound, WeftError
from ...client.limits import LIMITS, limit
from ..logs import with_fields
from .call import Call, Gateway, Reply, Route
from .compression import decompress
from .config import is_loopback
from .counters import UNMATCHED
from .errors import http_body, http_headers, http_status

log = logging.getLogger(__name__)

KEY_HEADER = "X-API-Key"
_MAX_BODY = limit("body_bytes")
_MAX_BODIES = limit("bodies_bytes")
_BODY_S = LIMITS["body_s"].default

_GATEWAY: web.AppKey[Gateway] = web.AppKey("gateway", Gateway)


class Bodies:
    """Bytes of bodies that are being read or worked on."""

    def __init__(self) -> None:
        self.num_bytes = 0


_BODIES: web.AppKey[Bodies] = web.AppKey("bodies", Bodies)


def make_app(gateway: Gateway, routes: Sequence[Route]) -> web.Application:
    """The application with these routes, each for callers with a key."""
    app = web.Application(middlewares=[_answer])
    app[_GATEWAY] = gateway
    app[_BODIES] = Bodies()
    for route in routes:
        app.router.add_route(route.method, route.path, partial(_serve, route))
    return app


async def _serve(route: Route, request: web.Request) -> web.StreamResponse:
    """Admit, read, call."""
    gateway = request.app[_GATEWAY]
    door = await gateway.doors.admit(key_of(request))
    request["tenant"] = door.tenant
    bodies = request.app[_BODIES]
    body = await _read(request, bodies, gateway)
    try:
        call = Call(
            gateway=gateway,
            door=door,
            body=body,
            parts=request.match_info,
            query=request.query,
            headers=request.headers,
            origin=gateway.public_url or str(request.url.origin()),
            is_near=not gateway.public_url and is_loopback(request.remote or ""),
        )
        request["fields"] = call.fields
        reply = await route.handler(call)
    finally:
        bodies.num_bytes -= len(body)
    return response_of(reply)


def key_of(request: web.Request) -> str:
    """The API key of a request, "" when it has none."""
    bearer = request.headers.get("Authorization", "")
    return request.headers.get(KEY_HEADER) or bearer.removeprefix("Bearer ").strip()


def response_of(reply: Reply) -> web.Response:
    """The response that a reply stands for."""
    return web.Response(
        body=reply.body,
        status=reply.status,
        headers=dict(reply.headers),
        content_type=reply.content_type,
    )


async def _read(request: web.Request, bodies: Bodies, gateway: Gateway) -> bytes:
    """The body, unpacked; its bytes are counted among those that are worked on."""
    if (request.content_length or 0) > _MAX_BODY:
        raise _too_large(request.content_length or 0)
    pieces: list[bytes] = []
    taken = 0
    try:
        async with asyncio.timeout(_BODY_S):
            async for piece in request.content.iter_any():
                if taken + len(piece) > _MAX_BODY:
                    raise _too_large(taken + len(piece))
                if bodies.num_bytes + gateway.sessions.num_bytes + len(piece) > _MAX_BODIES:
                    raise Busy(f"requests of {bodies.num_bytes} bytes are under way")
                taken += len(piece)
                bodies.num_bytes += len(piece)
                pieces.append(piece)
        packed = b"".join(pieces)
        body = decompress(packed, request.headers.get("Content-Encoding", ""), _MAX_BODY)
    except TimeoutError:
        bodies.num_bytes -= taken
        raise WeftError(f"the body did not come within {_BODY_S:.0f} s", "timeout") from None
    except BaseException:
        bodies.num_bytes -= taken
        raise
    bodies.num_bytes += len(body) - taken
    request["received"] = taken
    return body


def _too_large(num_bytes: int) -> BadRequest:
    return BadRequest(f"a body of {num_bytes} bytes, at most {_MAX_BODY}", "too_large")


@web.middleware
async def _answer(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Turn errors into responses, and tell the log what happened."""
    started = time.monotonic()
    try:
        response = await handler(request)
        code = ""
    except WeftError as error:
        response, code = _refusal(error), error.code
    except web.HTTPMethodNotAllowed as error:
        response, code = _refusal(BadRequest(f"{request.path} takes {error.allowed_methods}")), ""
    except web.HTTPException as error:
        response, code = _refusal(NotFound(f"no route {request.method} {request.path[:200]}")), ""
        log.info("no route %s %s (%s)", request.method, request.path[:200], error.status)
    except (ConnectionError, asyncio.CancelledError):
        raise
    except Exception:  # the boundary to HTTP: a fault of ours must not end the connection
        log.exception("%s %s failed", request.method, _route_of(request))
        response, code = _refusal(EngineFailed("a fault of the gateway")), "internal"
    duration_ms = 1000 * (time.monotonic() - started)
    fields = {
        "method": request.method,
        "route": _route_of(request),
        "status": response.status,
        "code": code,
        "duration_ms": round(duration_ms, 1),
        "tenant": request.get("tenant", ""),
        **request.get("fields", {}),
    }
    sent = response.body if isinstance(response, web.Response) else None
    request.app[_GATEWAY].counters.answered(
        str(fields["route"]) or UNMATCHED,
        request.method,
        response.status,
        duration_ms / 1000,
        received=request.get("received", 0),
        sent=len(sent) if isinstance(sent, bytes) else 0,
    )
    level = logging.INFO if response.status in (400, 401, 403) else logging.DEBUG
    log.log(
        level,
        "%s %s %d",
        request.method,
        fields["route"],
        response.status,
        extra=with_fields(**fields),
    )
    return response


def _refusal(error: WeftError) -> web.Response:
    return web.Response(
        body=http_body(error),
        status=http_status(error),
        headers=http_headers(error),
        content_type="application/json",
    )


def _route_of(request: web.Request) -> str:
    """The pattern of the route, which holds no id."""
    resource = request.match_info.route.resource
    return "" if resource is None else resource.canonical
