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

from ...client.arguments import shown
from ...client.errors import BadRequest, EngineFailed, NotFound, WeftError
from ...client.limits import LIMITS, limit
from ...client.wire import Malformed
from ..logs import log_fields, with_fields
from .call import Call, Gateway, Reply, Route
from .compression import begin_of, decompress
from .config import is_loopback
from .counters import UNMATCHED
from .errors import Unserved, http_body, http_headers, http_status
from .load import Load

log = logging.getLogger(__name__)

KEY_HEADER = "X-API-Key"
_MAX_BODY = limit("body_bytes")
_BODY_S = LIMITS["body_s"].default
_BEGIN_BYTES = 4096  # of a body that is refused: they name its run and number
_PACKED_BEGIN = 256 << 10  # bytes that unpack to those: more than one block of zstd
_PIECE = 256 << 10  # bytes of a long response that are handed out at a time

_GATEWAY: web.AppKey[Gateway] = web.AppKey("gateway", Gateway)
_UNSERVED: web.AppKey[set[str]] = web.AppKey("unserved", set[str])  # that the log has told of
_TENANT: web.RequestKey[str] = web.RequestKey("tenant", str)
_FIELDS: web.RequestKey[dict[str, str]] = web.RequestKey("fields", dict[str, str])
_BEGIN: web.RequestKey[bytes] = web.RequestKey("begin", bytes)  # of the body, unpacked
_RECEIVED: web.RequestKey[int] = web.RequestKey("received", int)  # bytes of the body


def make_app(gateway: Gateway, routes: Sequence[Route]) -> web.Application:
    """The application with these routes, each for callers with a key."""
    app = web.Application(middlewares=[_answer])
    app[_GATEWAY] = gateway
    app[_UNSERVED] = set()
    for route in routes:
        app.router.add_route(route.method, route.path, partial(_serve, route))
    return app


async def _serve(route: Route, request: web.Request) -> web.StreamResponse:
    """Admit, read, call."""
    gateway = request.app[_GATEWAY]
    door = await gateway.doors.admit(key_of(request))
    request[_TENANT] = door.tenant
    with door.used(), log_fields(tenant=door.tenant, method=route.method, route=route.path):
        load = gateway.sessions.load
        call = Call(
            gateway=gateway,
            door=door,
            body=b"",
            parts=request.match_info,
            query=_query_of(request),
            headers=request.headers,
            origin=gateway.public_url or f"{request.scheme}://{request.host}",
            is_near=not gateway.public_url and is_loopback(request.remote or ""),
        )
        request[_FIELDS] = call.fields
        if call.query and not route.takes_query:
            raise Malformed(f"{route.path} takes no {shown(next(iter(call.query)))} in its URL")
        try:
            body = call.body = await _read(request, load, door.tenant)
        except WeftError as error:
            gateway.counters.refused_body(error.code)
            if isinstance(error, BadRequest) and route.takes_begin:
                call.body, call.refusal = request[_BEGIN], error
                await route.handler(call)
            raise
        try:
            reply = await route.handler(call)
        finally:
            load.add(door.tenant, -len(body))
            call.body = body = b""
        return await _send(request, reply)


def key_of(request: web.Request) -> str:
    """The API key of a request, "" when it has none."""
    bearer = request.headers.get("Authorization", "")
    return request.headers.get(KEY_HEADER) or bearer.removeprefix("Bearer ").strip()


def _query_of(request: web.Request) -> dict[str, str]:
    found = dict(request.query)
    if len(found) != len(request.query):
        raise BadRequest("a parameter of the URL is given twice")
    return found


def response_of(reply: Reply) -> web.Response:
    """The response that a reply stands for."""
    return web.Response(
        body=reply.body,
        status=reply.status,
        headers=dict(reply.headers),
        content_type=reply.content_type,
    )


async def _send(request: web.Request, reply: Reply) -> web.StreamResponse:
    """Hand out a response; a long one piece by piece, since what is written is copied."""
    if len(reply.body) <= _PIECE or request.method == "HEAD":
        return response_of(reply)
    response = web.StreamResponse(status=reply.status, headers=dict(reply.headers))
    response.content_type = reply.content_type
    response.content_length = len(reply.body)
    await response.prepare(request)
    whole = memoryview(reply.body)
    for start in range(0, len(whole), _PIECE):
        await response.write(whole[start : start + _PIECE])
    await response.write_eof()
    return response


async def _read(request: web.Request, load: Load, tenant: str) -> bytes:
    """The body, unpacked; its bytes are counted among those that are under way."""
    encoding = request.headers.get("Content-Encoding", "")
    pieces: list[bytes] = []
    begin = bytearray()
    taken = 0
    try:
        async with asyncio.timeout(_BODY_S):
            async for piece in request.content.iter_any():
                load.take(tenant, len(piece))
                taken += len(piece)
                pieces.append(piece)
                if len(begin) < _PACKED_BEGIN:
                    begin += piece
                expected = 0 if taken < _BEGIN_BYTES else request.content_length or 0
                if max(taken, expected) > _MAX_BODY:
                    raise _too_large(max(taken, expected))
        request[_RECEIVED] = taken
        packed = b"".join(pieces)
        pieces.clear()
        body = decompress(packed, encoding, _MAX_BODY)
        load.take(tenant, len(body) - taken)
    except BaseException as error:
        load.add(tenant, -taken)
        request[_BEGIN] = begin_of(bytes(begin), encoding, _BEGIN_BYTES)
        if isinstance(error, TimeoutError):
            detail = f"the body did not come within {_BODY_S:.0f} s"
            raise WeftError(detail, "timeout") from None
        if isinstance(error, web.RequestPayloadError):
            raise Malformed("the body is damaged") from None
        raise
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
        if isinstance(error, Unserved):
            _warn_of(request, error.what)
    except web.HTTPException as error:
        response, code = _no_route(request, error), "not_found"
    except (ConnectionError, asyncio.CancelledError):
        raise
    except Exception:  # the boundary to HTTP: a fault of ours must not end the connection
        log.exception("%s %s failed", request.method, _route_of(request))
        response, code = _refusal(EngineFailed("a fault of the gateway")), "internal"
    if code and request.writer.output_size:  # what was promised cannot be kept; no words can say so
        log.info("%s broke off: %s", _route_of(request), code)
        _abort(request)
    duration_ms = 1000 * (time.monotonic() - started)
    fields = {
        "method": request.method,
        "route": _route_of(request),
        "status": response.status,
        "code": code,
        "duration_ms": round(duration_ms, 1),
        "tenant": request.get(_TENANT, ""),
        **request.get(_FIELDS, {}),
    }
    request.app[_GATEWAY].counters.answered(
        str(fields["route"]) or UNMATCHED,
        request.method,
        response.status,
        duration_ms / 1000,
        received=request.get(_RECEIVED, 0),
        sent=response.content_length or 0,
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


def _warn_of(request: web.Request, what: str) -> None:
    """Tell the log what is asked for and not served, each thing once."""
    seen = request.app[_UNSERVED]
    thing = f"{request.method} {_route_of(request)}: {what}"
    if thing not in seen:
        seen.add(thing)
        log.warning("%s is not served; it was asked for and refused", thing)


def _no_route(request: web.Request, error: web.HTTPException) -> web.Response:
    """Refuse a path or method that is none; what is not below /api can hold a secret."""
    path = request.rel_url.raw_path[:200]
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        response = _refusal(BadRequest(f"{path} takes {allowed}, not {request.method[:20]}"))
        response.set_status(error.status)
        response.headers["Allow"] = allowed
    else:
        response = _refusal(NotFound(f"no route {request.method[:20]} {path}"))
    shown = path if path.startswith("/api/") else "..."
    log.info("no route %s %s (%s)", request.method[:20], shown, error.status)
    return response


def _abort(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


def _route_of(request: web.Request) -> str:
    """The pattern of the route, which holds no id."""
    resource = request.match_info.route.resource
    return "" if resource is None else resource.canonical
