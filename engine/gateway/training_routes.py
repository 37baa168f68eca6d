"""Routes of training: each post becomes a command of the run, under the SDK's own number."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import msgspec

from ...client.adam import check_adam
from ...client.answers import read_forward_backward, read_result
from ...client.batch import Part, build_parts
from ...client.errors import BadRequest
from ...client.losses import fill_config, find_loss
from ...client.messages import (
    Command,
    CreateRun,
    ForwardBackward,
    LoadState,
    ModelCard,
    OptimStep,
    SaveForSampler,
    SaveState,
)
from ...client.paths import check_name, format_run_id, format_sampler_id
from ...client.session import check_metadata
from ...client.ttl import check_ttl
from . import bodies, shapes
from .call import PROTOBUF, Call, Reply, Route, json_reply
from .futures import Answer
from .line import Parts
from .names import from_weft, future_id, request_number, to_weft
from .numbered import Numbered, Place
from .passes import PassRequest, peek_pass, read_pass, write_pass
from .session import Session
from .unserved import refuse_unserved

T = TypeVar("T")

DEFAULT_RANK = 32
LARGE_BYTES = 1 << 18  # of a pass that is read in a thread; it takes some 4 ms
ALPHA = 32.0  # of every adapter; the SDK's config has no field for it


async def create_model(call: Call) -> Reply:
    """A new run."""
    body = bodies.decode(bodies.CreateModel, call.body)
    refuse_unserved(body)
    lora = body.lora_config
    return await _create(
        call,
        body.session_id,
        body.model_seq_id,
        {"type": "create_model"},
        base_model=body.base_model,
        rank=lora.rank,
        seed=lora.seed,
        train_attn=lora.train_attn,
        train_mlp=lora.train_mlp,
        train_unembed=lora.train_unembed,
        user_metadata=check_metadata(body.user_metadata),
    )


async def load_weights(call: Call) -> Reply:
    """A new run from a saved state, or a run that goes back to one."""
    known = bodies.peek(call.body)
    if known is not None:
        async with Numbered(call, known) as place:
            body = bodies.decode(bodies.LoadWeights, call.body)
            refuse_unserved(body)
            path = to_weft(body.path)
            load = partial(LoadState, path=path, with_optimizer=body.optimizer)
            result = {"type": "load_weights", "path": body.path}
            return _command(call, place, load, lambda _: result)
    body = bodies.decode(bodies.LoadWeights, call.body)
    refuse_unserved(body)
    assert body.session_id is not None  # it would have had a model_id and a number
    assert body.model_seq_id is not None
    return await _create(
        call,
        body.session_id,
        body.model_seq_id,
        {"type": "load_weights", "path": body.path},
        base_model=body.base_model or "",
        rank=0,  # this and what follows are the saved state's
        train_attn=True,
        train_mlp=True,
        train_unembed=True,
        from_path=to_weft(body.path),
        with_optimizer=body.optimizer,
        user_metadata=check_metadata(body.user_metadata),
    )


async def get_info(call: Call) -> Reply:
    """What a run trains."""
    body = bodies.decode(bodies.GetInfo, call.body)
    session = await call.owner_of(body.model_id)
    run = await call.ask("run", body.model_id)
    card = await session.card("run", body.model_id)
    return json_reply(
        {
            "type": "get_info",
            "model_id": body.model_id,
            "model_data": {
                "arch": card.model_type,
                "model_name": run["base_model"],
                "tokenizer_id": card.tokenizer or None,
            },
            "optimizer_config": {"type": "adamw"},
            "is_lora": True,
            "lora_rank": run["rank"],
            "model_name": run["base_model"],
        }
    )


async def forward_backward(call: Call) -> Reply:
    """A forward_backward or a forward; refused ones use their number up."""
    async with Numbered(call, peek_pass(call.body)) as place:
        card = await place.session.card("run", place.run_id)
        if len(call.body) <= LARGE_BYTES:
            asked, config, parts = _read_parts(call.body, card)
        else:  # others are not to wait for it
            asked, config, parts = await asyncio.to_thread(_read_parts, call.body, card)
        number = place.number
        headers = [
            ForwardBackward(
                request_id=number,
                run_id=place.run_id,
                seq=place.seq,
                digest=b"",
                part=index,
                num_parts=len(parts),
                num_datums=len(part.lengths),
                num_tokens=part.num_tokens,
                loss_fn=asked.loss_fn,
                loss_fn_config=config,
                forward_only=asked.forward_only,
                arrays=part.arrays,
            )
            for index, part in enumerate(parts)
        ]
        frames = [part.frames for part in parts]
        place.session.submit(headers, frames, partial(_write_pass, parts))
        return json_reply({"request_id": future_id(place.session.session_id, number)})


def _read_parts(body: bytes, card: ModelCard) -> tuple[PassRequest, dict[str, float], list[Part]]:
    """What a pass asks for, its options with their defaults, and its data as it is sent."""
    asked = read_pass(body)
    config = fill_config(find_loss(asked.loss_fn), asked.loss_fn_config)
    return asked, config, build_parts(asked.data, asked.loss_fn, card, config)


async def optim_step(call: Call) -> Reply:
    """A step of the optimizer."""
    async with Numbered(call, bodies.peek(call.body)) as place:
        body = bodies.decode(bodies.OptimStep, call.body)
        refuse_unserved(body)
        params = body.adam_params
        assert params is not None  # the other kind was refused
        step = partial(OptimStep, **msgspec.structs.asdict(params))
        return _command(call, place, step, _stepped, check=check_adam)


async def save_weights(call: Call) -> Reply:
    """Save a run's state."""
    async with Numbered(call, bodies.peek(call.body)) as place:
        body = bodies.decode(bodies.SaveWeights, call.body)
        save = partial(
            SaveState,
            name=check_name(body.path or ""),
            overwrite=body.overwrite,
            ttl_s=check_ttl(body.ttl_seconds),
            user_metadata=check_metadata(body.user_metadata),
        )
        return _command(call, place, save, _saved("save_weights"))


async def save_weights_for_sampler(call: Call) -> Reply:
    """Freeze a run's weights: under a name, or as a sampler of this session."""
    kind = "save_weights_for_sampler"
    async with Numbered(call, bodies.peek(call.body)) as place:
        body = bodies.decode(bodies.SaveWeightsForSampler, call.body)
        refuse_unserved(body)
        if (body.path is None) == (body.sampling_session_seq_id is None):
            raise BadRequest("exactly one of path and sampling_session_seq_id must be given")
        ttl_s, metadata = check_ttl(body.ttl_seconds), check_metadata(body.user_metadata)
        if body.sampling_session_seq_id is not None:
            if ttl_s or metadata:
                raise BadRequest("ttl_seconds and user_metadata belong to weights with a path")
            sampler_id = format_sampler_id(place.session.session_id, body.sampling_session_seq_id)
            freeze = partial(SaveForSampler, sampler_id=sampler_id)
            result = {"type": kind, "sampling_session_id": sampler_id}
            reply = _command(call, place, freeze, lambda _: result)
            place.session.keep_unnamed(place.run_id, sampler_id)
            return reply
        freeze = partial(
            SaveForSampler,
            name=check_name(body.path or ""),
            ttl_s=ttl_s,
            user_metadata=metadata,
        )
        return _command(call, place, freeze, _saved(kind))


async def save_weights_external(call: Call) -> Reply:
    """Keep a run's weights as an adapter whose files can be fetched."""
    async with Numbered(call, bodies.peek(call.body)) as place:
        body = bodies.decode(bodies.SaveWeightsExternal, call.body)
        refuse_unserved(body)
        save = partial(
            SaveForSampler,
            name=check_name(body.path or ""),
            is_external=True,
            ttl_s=check_ttl(body.ttl_seconds),
        )
        finish = _saved("save_weights_external")
        return _command(call, place, save, finish)


async def _create(
    call: Call,
    session_id: str,
    model_seq_id: int,
    told: dict[str, Any],
    *,
    seed: int | None = None,
    **fields: Any,
) -> Reply:
    """Make a run; its first number is 0. What is told of it is its id and `told`."""
    session = await call.session(session_id)
    run_id = format_run_id(session.session_id, model_seq_id)
    number = request_number("command", run_id, 0)
    header = CreateRun(
        request_id=number,
        run_id=run_id,
        seq=0,
        digest=b"",
        alpha=ALPHA,
        # One that is drawn is the same for a repeat of the post.
        seed=number & 0xFFFF_FFFF if seed is None else seed,
        **fields,
    )
    return _send(call, session, header, lambda _: {**told, "model_id": run_id})


def _command(
    call: Call,
    place: Place,
    make: Callable[..., Command],
    finish: Callable[[dict[str, Any]], dict[str, Any]],
    check: Callable[[Any], None] = lambda header: None,
) -> Reply:
    header = make(request_id=place.number, run_id=place.run_id, seq=place.seq, digest=b"")
    check(header)
    return _send(call, place.session, header, finish)


def _send(
    call: Call,
    session: Session,
    header: Command,
    finish: Callable[[dict[str, Any]], dict[str, Any]],
) -> Reply:
    """Send a command without arrays; `finish` makes the SDK's result of the broker's."""

    def convert(parts: Parts) -> Answer:
        return Answer(msgspec.json.encode(finish(read_result(parts))))

    session.submit([header], [()], convert)
    call.fields["run_id"] = header.run_id
    reply = {"request_id": future_id(session.session_id, header.request_id)}
    return json_reply(reply)


def _saved(kind: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def finish(result: dict[str, Any]) -> dict[str, Any]:
        told = {"type": kind, "path": from_weft(result["path"])}
        return {**told, "size_bytes": result["size_bytes"]} if "size_bytes" in result else told

    return finish


def _stepped(result: dict[str, Any]) -> dict[str, Any]:
    return {"metrics": shapes.metrics(result["metrics"])}


def _write_pass(sent: list[Part], parts: Parts) -> Answer:
    return Answer(write_pass(read_forward_backward(parts, sent)), PROTOBUF)


ROUTES = [
    Route("POST", "/api/v1/create_model", create_model),
    Route("POST", "/api/v1/load_weights", load_weights),
    Route("POST", "/api/v1/get_info", get_info),
    Route("POST", "/api/v1/forward_backward", forward_backward, takes_begin=True),
    Route("POST", "/api/v1/optim_step", optim_step),
    Route("POST", "/api/v1/save_weights", save_weights),
    Route("POST", "/api/v1/save_weights_for_sampler", save_weights_for_sampler),
    Route("POST", "/api/v1/save_weights_external", save_weights_external),
]
