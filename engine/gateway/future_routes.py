"""Routes of futures: polls that are held until there is an answer, and withdrawals."""

import time

from ...client.errors import BadRequest, WeftError
from ...client.messages import Cancel
from ...client.waiting import REASONS, Reason
from . import bodies
from .call import JSON, Call, Reply, Route, json_reply
from .futures import Future
from .names import future_id, parse_future_id
from .session import Session

INLINE_BYTES = 65_536  # of an answer that is sent although the SDK asked for its size first
_PAUSED = ("paused", "busy", "connecting", "reconnecting")


async def retrieve_future(call: Call) -> Reply:
    """Hold the poll until the future is settled; 408 asks the SDK to poll again at once."""
    body = bodies.decode(bodies.RetrieveFuture, call.body)
    session, number = await _owner(call, body.request_id)
    with call.gateway.counters.parked():
        future = await session.wait(number, call.gateway.poll_s)
    if future.answer is None:
        return _try_again(session, body.request_id, number)
    answer = future.answer
    if body.allow_metadata_only and len(answer.body) > INLINE_BYTES:
        size = len(answer.body)
        return json_reply({"status": "complete_metadata", "response_payload_size": size})
    session.futures.fetched(number, time.monotonic())
    return Reply(answer.body, JSON if answer.is_failure else answer.content_type)


async def retrieve_futures(call: Call) -> Reply:
    """Tell which samples of one client have completed; held until there is one."""
    body = bodies.decode(bodies.RetrieveFutures, call.body)
    target = body.target
    session = await call.owner_of(target.sampling_session_id)
    retrieved = [parse_future_id(request_id) for request_id in body.retrieved_request_ids]
    session.futures.acknowledge(
        number for session_id, number in retrieved if session_id == session.session_id
    )
    group = group_of(target.sampling_session_id, target.cloned_sampler_id)
    done, cursor = session.futures.completions(group, body.prev_cursor)
    timeout_s = call.gateway.poll_s
    if body.timeout is not None:
        timeout_s = min(max(body.timeout, 0.0), timeout_s)
    if retrieved and not session.futures.is_awaited(group):
        timeout_s = 0.0  # SDKs before 0.38 say what they have with a poll that waits for nothing
    if not done and timeout_s > 0:
        with call.gateway.counters.parked():
            await session.wait_group(group, timeout_s)
        done, cursor = session.futures.completions(group, body.prev_cursor)
    completions = [_completion(session, future) for future in done]
    return json_reply({"completions": completions, "cursor": cursor})


async def cancel_future(call: Call) -> Reply:
    """Withdraw a request if it has not started; the SDK does not wait for an outcome."""
    body = bodies.decode(bodies.CancelFuture, call.body)
    session, number = await _owner(call, body.request_id)
    line = session.line
    try:
        await line.request(Cancel(request_id=line.new_number(), target_id=number))
    except BadRequest as error:
        if error.code not in ("too_late", "not_found"):  # it goes on, or is over
            raise
    return json_reply({})


def group_of(sampler_id: str, clone: int) -> str:
    """What the samples of one client of a sampler are told together by."""
    return f"{sampler_id}/{clone}"


async def _owner(call: Call, request_id: str) -> tuple[Session, int]:
    """The session of a future; a future of nobody known is one whose result is gone."""
    session_id, number = parse_future_id(request_id)
    call.fields["request_id"] = request_id[:80]
    try:
        return await call.session(session_id), number
    except BadRequest:
        raise WeftError(
            "there is no such future, or its result is gone", "result_expired"
        ) from None


def _try_again(session: Session, request_id: str, number: int) -> Reply:
    reason = session.line.reason(number)
    is_paused = reason is not None and reason.code in _PAUSED
    reply = json_reply(
        {
            "type": "try_again",
            "request_id": request_id,
            "queue_state": "paused_capacity" if is_paused else "active",
            "queue_state_reason": None if reason is None else _words_of(reason),
        }
    )
    return Reply(reply.body, reply.content_type, 408)


def _words_of(reason: Reason) -> str:
    """Why a request waits, in words that do not say where the broker is."""
    if reason.code in ("connecting", "reconnecting", "sent"):
        return REASONS[reason.code].meaning
    return reason.detail


def _completion(session: Session, future: Future) -> dict[str, object]:
    told: dict[str, object] = {"request_id": future_id(session.session_id, future.number)}
    if future.answer is None or future.answer.is_failure:
        return {"state": "failed", **told}
    size = len(future.answer.body)
    return {"state": "finished", **told, "response_payload_uncompressed_size": size}


ROUTES = [
    Route("POST", "/api/v1/retrieve_future", retrieve_future),
    Route("POST", "/api/v1/retrieve_futures", retrieve_futures),
    Route("POST", "/api/v1/cancel_future", cancel_future),
]
