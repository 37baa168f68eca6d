"""Routes of sampling: sessions that sample from one set of weights, and their samples."""

import asyncio

from ...client.errors import BadRequest, NotFound, WeftError
from ...client.messages import CreateSampler
from ...client.model_cards import find_card
from ...client.paths import format_sampler_id
from ...client.sample_answers import read_samples
from . import bodies, samples
from .call import PROTOBUF, Call, Reply, Route, json_reply
from .future_routes import group_of
from .futures import Answer
from .line import Parts
from .names import future_id, request_number, to_weft

CLONE = 1_000_000_000  # numbers of one client of a sampling session
OPEN_S = 50.0  # how long a sampler may take to open; the SDK waits for a minute


async def create_sampling_session(call: Call) -> Reply:
    """Open a sampler; a repeat waits for the same one."""
    body = bodies.decode(bodies.CreateSamplingSession, call.body)
    session = await call.session(body.session_id)
    base_model, model_path = body.base_model or "", body.model_path or ""
    if not base_model and not model_path:
        raise BadRequest("either base_model or model_path must be given")
    path = to_weft(model_path) if model_path else ""
    if base_model and path:
        await _check_base(call, path, base_model)
    sampler_id = format_sampler_id(session.session_id, body.sampling_session_seq_id)
    header = CreateSampler(
        request_id=session.line.new_number(),
        sampler_id=sampler_id,
        base_model="" if path else base_model,
        model_path=path,
    )
    try:
        async with asyncio.timeout(OPEN_S):
            await session.open_sampler(header)
    except TimeoutError:
        detail = f"sampler {sampler_id} was not open after {OPEN_S:.0f} s"
        raise WeftError(detail, "timeout") from None
    return json_reply({"type": "create_sampling_session", "sampling_session_id": sampler_id})


async def join_sampling_session(call: Call) -> Reply:
    """A number for one more client of a sampling session."""
    body = bodies.decode(bodies.JoinSamplingSession, call.body)
    sampler_id = body.sampling_session_id
    session = await call.owner_of(sampler_id)
    await session.card("sampler", sampler_id)  # raises NotFound
    counter = session.new_clone()
    return json_reply({"type": "join_sampling_session", "client_counter": counter})


async def asample(call: Call) -> Reply:
    """Draw continuations of a prompt."""
    body = bodies.decode(bodies.Sample, call.body)
    sampler_id = body.sampling_session_id
    session = await call.owner_of(sampler_id)
    card = await session.card("sampler", sampler_id)
    number = request_number("sample", sampler_id, body.seq_id)
    asked = samples.build_call(body, card, number)
    own_id = future_id(session.session_id, number)

    def convert(parts: Parts) -> Answer:
        return Answer(samples.write_samples(read_samples(parts, asked)), PROTOBUF)

    group = group_of(sampler_id, body.seq_id // CLONE)
    session.submit([asked.header], [asked.frames], convert, group)
    ids = [f"{own_id}:{index}" for index in range(body.num_samples)]
    return json_reply({"request_id": own_id, "sample_sequence_ids": ids})


async def _check_base(call: Call, path: str, base_model: str) -> None:
    """Refuse a base model that is not the one of the weights."""
    found = (await call.ask("checkpoints", path))["checkpoints"][0]["base_model"]
    cards = call.door.cards
    if find_card(cards, base_model) != find_card(cards, found):
        raise NotFound(f"base_model is {base_model[:80]!r}, and the weights are of {found!r}")


ROUTES = [
    Route("POST", "/api/v1/create_sampling_session", create_sampling_session),
    Route("POST", "/api/v1/join_sampling_session", join_sampling_session),
    Route("POST", "/api/v1/asample", asample),
]
