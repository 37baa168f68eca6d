"""Routes of the rest client: what the broker keeps, listed and changed."""

from typing import Any

from ...client.errors import BadRequest
from ...client.file_messages import (
    CopyCheckpoint,
    DeleteCheckpoint,
    ExpireCheckpoint,
    PublishCheckpoint,
)
from ...client.messages import Request
from ...client.paths import format_run_id, parse_path
from ...client.ttl import check_ttl
from . import bodies, shapes
from .call import CHECKPOINT, Call, Reply, Route, json_reply
from .doors import DOOR_TAG
from .errors import Unserved
from .names import from_weft, to_weft
from .queries import Page, Scope, read_query
from .unserved import refuse_unserved


async def training_runs(call: Call) -> Reply:
    """The caller's runs, a page."""
    runs, cursor = await _page(call, "runs")
    return json_reply({"training_runs": [shapes.training_run(run) for run in runs], **cursor})


async def training_run(call: Call) -> Reply:
    """One run."""
    read_query(Scope, call.query)
    return json_reply(shapes.training_run(await call.ask("run", call.parts["run_id"])))


async def run_checkpoints(call: Call) -> Reply:
    """All checkpoints of one run."""
    found = await _all(call, "checkpoints", call.parts["run_id"])
    return json_reply({"checkpoints": [shapes.checkpoint(entry) for entry in found]})


async def checkpoints(call: Call) -> Reply:
    """The caller's checkpoints, a page."""
    found, cursor = await _page(call, "checkpoints")
    return json_reply({"checkpoints": [shapes.checkpoint(entry) for entry in found], **cursor})


async def weights_info(call: Call) -> Reply:
    """What a checkpoint was trained on, and how."""
    body = bodies.decode(bodies.WeightsInfo, call.body)
    found = await call.ask("checkpoints", to_weft(body.tinker_path))
    return json_reply(shapes.weights_info(found["checkpoints"][0]))


async def delete_checkpoint(call: Call) -> Reply:
    """Delete a checkpoint."""
    return await _change(call, DeleteCheckpoint, path=str(call.checkpoint()))


async def publish_checkpoint(call: Call) -> Reply:
    """Let everybody read a checkpoint."""
    return await _change(call, PublishCheckpoint, path=str(call.checkpoint()), public=True)


async def unpublish_checkpoint(call: Call) -> Reply:
    """Let nobody else read a checkpoint."""
    return await _change(call, PublishCheckpoint, path=str(call.checkpoint()), public=False)


async def set_checkpoint_ttl(call: Call) -> Reply:
    """Set when a checkpoint is deleted; null keeps it."""
    body = bodies.decode(bodies.SetTtl, call.body)
    ttl_s = check_ttl(body.ttl_seconds)
    return await _change(call, ExpireCheckpoint, path=str(call.checkpoint()), ttl_s=ttl_s)


async def copy_weights(call: Call) -> Reply:
    """Copy a checkpoint to a place of its own."""
    body = bodies.decode(bodies.CopyWeights, call.body)
    refuse_unserved(body)
    if call.headers.get("X-Tinker-Weights-Access-Token"):
        detail = "weights_access_token is not served; publish the checkpoint instead"
        raise Unserved(detail, "weights_access_token")
    if body.session_id is None or body.model_seq_id is None:
        raise BadRequest("session_id and model_seq_id are needed")
    session = await call.session(body.session_id)
    source = parse_path(to_weft(body.source_path))
    run_id = format_run_id(session.session_id, body.model_seq_id)
    header = CopyCheckpoint(
        request_id=session.line.new_number(),
        path=str(source),
        target=f"weft://{run_id}/{source.kind}/{source.name}",
        ttl_s=check_ttl(body.ttl_seconds),
    )
    result = await session.line.request(header)
    return json_reply({"tinker_path": from_weft(result["path"])})


async def sessions(call: Call) -> Reply:
    """The ids of the caller's sessions, a page; those of keys at gateways are none of the SDK."""
    asked = read_query(Page, call.query)
    found = [
        entry["session_id"]
        for entry in await _all(call, "sessions", "")
        if DOOR_TAG not in entry["tags"]
    ]
    return json_reply({"sessions": found[asked.offset :][: asked.limit]})


async def session(call: Call) -> Reply:
    """One session: its runs and samplers."""
    read_query(Scope, call.query)
    return json_reply(shapes.session(await _whole_session(call)))


async def sampler(call: Call) -> Reply:
    """What a sampler samples from."""
    return json_reply(shapes.sampler(await call.ask("sampler", call.parts["sampler_id"])))


async def _whole_session(call: Call) -> dict[str, Any]:
    """A session with all its runs and samplers, page after page."""
    subject = call.parts["session_id"]
    found = await call.ask("session", subject)
    page = found
    while page["next"] >= 0:
        page = await call.ask("session", subject, offset=page["next"])
        found["run_ids"] += page["run_ids"]
        found["sampler_ids"] += page["sampler_ids"]
    return found


async def _page(call: Call, what: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """As many entries of a list as asked for, and the SDK's cursor."""
    asked = read_query(Page, call.query)
    limit, offset = asked.limit, asked.offset
    found: list[dict[str, Any]] = []
    total, at = 0, offset
    while at >= 0 and len(found) < limit:
        page = await call.ask(what, offset=at, limit=limit - len(found))
        found += page[what]
        total, at = page["total"], page["next"]
    return found, {"cursor": {"offset": offset, "limit": limit, "total_count": total}}


async def _all(call: Call, what: str, subject: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    at = 0
    while at >= 0:
        page = await call.ask(what, subject, offset=at)
        found += page[what]
        at = page["next"]
    return found


async def _change(call: Call, kind: type[Request], **fields: Any) -> Reply:
    line = call.door.line
    await line.request(kind(request_id=line.new_number(), **fields))
    return Reply(b"{}")


ROUTES = [
    Route("GET", "/api/v1/training_runs", training_runs, takes_query=True),
    Route("GET", "/api/v1/training_runs/{run_id}", training_run, takes_query=True),
    Route("GET", "/api/v1/training_runs/{run_id}/checkpoints", run_checkpoints),
    Route("GET", "/api/v1/checkpoints", checkpoints, takes_query=True),
    Route("POST", "/api/v1/weights_info", weights_info),
    Route("DELETE", CHECKPOINT, delete_checkpoint),
    Route("POST", f"{CHECKPOINT}/publish", publish_checkpoint),
    Route("DELETE", f"{CHECKPOINT}/publish", unpublish_checkpoint),
    Route("PUT", f"{CHECKPOINT}/ttl", set_checkpoint_ttl),
    Route("POST", "/api/v1/copy_weights", copy_weights),
    Route("GET", "/api/v1/sessions", sessions, takes_query=True),
    Route("GET", "/api/v1/sessions/{session_id}", session, takes_query=True),
    Route("GET", "/api/v1/samplers/{sampler_id}", sampler),
]
