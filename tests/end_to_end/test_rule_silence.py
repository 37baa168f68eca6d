"""Rules 8 and 9: nothing is dropped silently, nothing is unbounded."""

from collections.abc import Iterator
from typing import Any

import msgpack
import numpy as np
import pytest
from raw_client import RawClient

from weft.client import wire
from weft.client.limits import limit
from weft.client.messages import Failure, Query, Reply
from weft.engine import Engine


@pytest.fixture
def raw(engine: Engine) -> Iterator[RawClient]:
    client = RawClient(engine._context, engine.address)
    yield client
    client.socket.close()


def is_alive(raw: RawClient) -> bool:
    """Whether the server still answers this client."""
    raw.send(Query(request_id=999, what="status"))
    return isinstance(raw.answers(1)[999], Reply)


def refused(raw: RawClient, request_id: int) -> Failure:
    answer = raw.answers(1)[request_id]
    assert isinstance(answer, Failure)
    return answer


def test_an_unknown_field_is_refused_by_name(raw: RawClient) -> None:
    fields = msgpack.unpackb(wire.encode(raw.step(7, 0)))
    raw.send_bytes(msgpack.packb({**fields, "momentum": 0.9}))
    failure = raw.receive()
    assert isinstance(failure, Failure)
    assert failure.code == "malformed"
    assert "momentum" in failure.detail
    assert is_alive(raw)


def test_an_unknown_kind_is_refused_by_name(raw: RawClient) -> None:
    raw.send_bytes(msgpack.packb({"kind": "distill", "request_id": 7}))
    failure = raw.receive()
    assert isinstance(failure, Failure)
    assert "distill" in failure.detail
    assert is_alive(raw)


@pytest.mark.parametrize(
    ("arrays", "fields"),
    [
        ({"rewards": np.ones(3, np.float32)}, {}),
        ({}, {"loss_fn": "dpo"}),
        ({}, {"loss_fn_config": {"beta": 0.1}}),
    ],
    ids=["input", "loss", "option"],
)
def test_what_is_not_served_is_named(
    raw: RawClient, arrays: dict[str, np.ndarray], fields: dict[str, Any]
) -> None:
    raw.send(raw.create())
    raw.answers(1)
    raw.send(*raw.call(2, 1, arrays=arrays, **fields))
    failure = refused(raw, 2)
    assert failure.code == "bad_request"
    assert any(name in failure.detail for name in ("rewards", "dpo", "beta"))


@pytest.mark.parametrize(
    "frames",
    [
        (b"",),
        (b"\xc1",),
        (b"\x81\xa4kind",),
        (b"\x9f" * 1000,),
        (b"\xdf\xff\xff\xff\xff",),
        (b"x" * (limit("header_bytes") + 1),),
        tuple(b"" for _ in range(limit("frames") + 2)),
    ],
    ids=["empty", "reserved", "truncated", "nested", "huge map", "giant", "many frames"],
)
def test_malformed_bytes_get_an_answer_and_a_live_server(
    raw: RawClient, frames: tuple[bytes, ...]
) -> None:
    raw.send_bytes(*frames)
    failure = raw.receive()
    assert isinstance(failure, Failure)
    assert failure.code in ("malformed", "too_large")
    assert is_alive(raw)


def test_a_frame_that_is_shorter_than_declared_is_refused(raw: RawClient) -> None:
    raw.send(raw.create())
    raw.answers(1)
    header, frames = raw.call(2, 1)
    raw.send(header, [bytes(frames[0])[:-4], *frames[1:]])
    assert refused(raw, 2).code == "malformed"
    raw.send(*raw.call(3, 2))
    assert isinstance(raw.answers(1)[3], Reply)


def test_unaligned_and_odd_frames_do_no_harm(raw: RawClient) -> None:
    raw.send(raw.create())
    raw.answers(1)
    header, frames = raw.call(2, 1)
    raw.send(header, [memoryview(b"\0" + bytes(frame))[1:] for frame in frames])
    assert isinstance(raw.answers(1)[2], Reply)


def test_early_numbers_are_bounded(raw: RawClient) -> None:
    raw.send(raw.create())
    raw.answers(1)
    held = limit("held_commands")
    for place in range(held + 1):
        raw.send(raw.step(10 + place, 2 + place))
    answer = raw.answers(1)
    ((_, failure),) = answer.items()
    assert isinstance(failure, Failure)
    assert failure.code == "busy"
    assert failure.retry_after_s > 0
    assert is_alive(raw)
