"""Routes of sessions: what a program says first, while it lives, and last."""

import hashlib
import secrets

from ...client.errors import BadRequest, WeftError, sentence
from ...client.messages import SPOKEN_VERSIONS, Hello
from ...client.session import check_metadata
from . import bodies
from .call import Call, Reply, Route, json_reply
from .doors import CLIENT
from .errors import Unserved
from .unserved import refuse_unserved

# One poller for all samples of a client, and clones that never share a number.
CONFIG = {"sample_use_retrieve_futures": True, "sample_join_sampling_session": True}
DYNAMIC_CONFIG = {"refresh_interval_sec": 300, "sample_cancel_enabled": True}
IDEMPOTENCY_HEADER = "X-Idempotency-Key"


async def client_config(call: Call) -> Reply:
    """What the SDK may do here."""
    bodies.decode(bodies.ClientConfig, call.body)
    return json_reply({**CONFIG, "proto_compress_fwdbwd": not call.is_near})


async def dynamic_config(call: Call) -> Reply:
    """The same, asked for now and then."""
    bodies.decode(bodies.ClientConfig, call.body)
    return json_reply(DYNAMIC_CONFIG)


async def create_session(call: Call) -> Reply:
    """Open a session; a repeat of the same post gives the same one."""
    body = bodies.decode(bodies.CreateSession, call.body)
    refuse_unserved(body)
    hello = Hello(
        versions=list(SPOKEN_VERSIONS),
        session_id=_session_id(call),
        api_key=call.door.key,
        client=f"{CLIENT} for tinker/{body.sdk_version}",
        user_metadata=check_metadata(body.user_metadata),
        display_name=body.display_name or "",
        tags=body.tags,
    )
    session = await call.gateway.sessions.create(call.door, hello)
    call.fields["session_id"] = session.session_id
    return json_reply({"type": "create_session", "session_id": session.session_id})


async def session_heartbeat(call: Call) -> Reply:
    """Keep a session; 410 tells the SDK that it is gone."""
    body = bodies.decode(bodies.SessionHeartbeat, call.body)
    try:
        await call.session(body.session_id)
    except BadRequest as error:
        raise WeftError(str(error), "session_expired") from None
    return json_reply({"type": "session_heartbeat"})


async def finish_session(call: Call) -> Reply:
    """End a session; the first reason counts, and a repeat changes nothing."""
    body = bodies.decode(bodies.FinishSession, call.body)
    call.fields["reason"] = body.reason.type
    try:
        session = await call.session(call.parts["session_id"])
    except BadRequest:
        return json_reply({})
    ending = f"{body.reason.type}: {body.detail}" if body.detail else body.reason.type
    call.gateway.sessions.finish(session, sentence(ending))
    return json_reply({})


async def telemetry(call: Call) -> Reply:
    """Take what the SDK tells of itself, and forget it: it can hold the API key in clear."""
    return json_reply({"status": "accepted"})


async def capabilities(call: Call) -> Reply:
    """The models that are served."""
    found = await call.ask("capabilities")
    models = [
        {
            "model_name": name,
            "max_context_length": card["max_context"],
            "trainable": True,
            "sampleable": True,
        }
        for card in found["models"]
        for name in (card["name"], *card["aliases"])
    ]
    return json_reply({"supported_models": models})


async def healthz(call: Call) -> Reply:
    """The SDK's question whether anybody is there."""
    return json_reply({"status": "ok"})


def refuse(what: str) -> Route:
    """A route of the SDK that is not served."""
    method, _, path = what.partition(" ")

    async def handler(call: Call) -> Reply:
        raise Unserved(f"{method} {path} is not served here", "the route")

    return Route(method, path, handler)


def _session_id(call: Call) -> str:
    """Its own for each post, and the same for a repeat of one."""
    key = call.headers.get(IDEMPOTENCY_HEADER, "")
    if not key:
        return secrets.token_hex(16)
    text = f"{call.door.key}\0{key}"
    return hashlib.blake2b(text.encode(), digest_size=16, person=b"weft-session").hexdigest()


ROUTES = [
    Route("POST", "/api/v1/client/config", client_config),
    Route("POST", "/api/v1/client/dynamic_config", dynamic_config),
    Route("POST", "/api/v1/create_session", create_session),
    Route("POST", "/api/v1/session_heartbeat", session_heartbeat),
    Route("POST", "/api/v1/sessions/{session_id}/finish", finish_session),
    Route("POST", "/api/v1/telemetry", telemetry),
    Route("GET", "/api/v1/get_server_capabilities", capabilities),
    Route("GET", "/api/v1/healthz", healthz),
]
