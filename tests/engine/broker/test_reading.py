"""Frames to events, whatever they hold."""

from collections.abc import Iterator
from typing import Any

import pytest
import zmq
from core_bench import RUN, optim_step

from weft.client import wire
from weft.client.messages import Heartbeat
from weft.client.worker_messages import Done
from weft.engine.broker.events import ClientMessage, MalformedMessage, WorkerMessage
from weft.engine.broker.reading import COPY_BYTES, read_client, read_worker, receive, send

PEER = b"peer"


@pytest.fixture
def sockets() -> Iterator[tuple[Any, Any]]:
    context: zmq.Context[Any] = zmq.Context()
    router, dealer = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    router.setsockopt(zmq.ROUTER_MANDATORY, 1)
    router.bind("inproc://reading")
    dealer.connect("inproc://reading")
    yield router, dealer
    router.close(0)
    dealer.close(0)
    context.term()


def test_a_message_is_read_with_all_its_frames() -> None:
    header = optim_step(1)
    raw = wire.encode(header)
    assert read_client([PEER, raw, b"payload"]) == ClientMessage(PEER, header, [raw, b"payload"])


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        pytest.param([PEER], "malformed", id="no header"),
        pytest.param([PEER, b""], "malformed", id="empty header"),
        pytest.param([PEER, zmq.Frame(bytes(70_000))], "too_large", id="huge header"),
        pytest.param([PEER, b"\x81\x01\x02"], "malformed", id="number as key"),
        pytest.param([PEER, b"\x93" * 5000], "malformed", id="deep"),
    ],
)
def test_what_is_no_message_is_malformed(frames: list[Any], code: str) -> None:
    event = read_client(frames)
    assert isinstance(event, MalformedMessage)
    assert (event.peer, event.code, event.request_id, event.seq) == (PEER, code, 0, -1)


def test_of_a_refused_command_its_number_is_read() -> None:
    raw = wire.encode(optim_step(3)).replace(b"beta1", b"gamma")
    event = read_client([PEER, raw])
    assert isinstance(event, MalformedMessage)
    assert (event.request_id, event.run_id, event.seq) == (13, RUN, 3)


def test_too_many_frames_are_malformed_and_not_kept(sockets: tuple[Any, Any]) -> None:
    router, dealer = sockets
    dealer.send_multipart([wire.encode(optim_step(3)), *[b"x"] * 500])
    assert router.poll(10_000)
    frames = receive(router)
    assert frames is not None
    assert len(frames) < 100
    event = read_client(frames)
    assert isinstance(event, MalformedMessage)
    assert (event.request_id, event.seq) == (13, 3)


def test_a_worker_message_is_read_with_its_reply() -> None:
    header = Done(dispatch_id=1, lease_epoch=1)
    event = read_worker([PEER, wire.encode(header), b"reply", b"payload"])
    assert event == WorkerMessage(PEER, header, [b"reply", b"payload"])


@pytest.mark.parametrize("frames", [[PEER], [PEER, b"\xc1"]])
def test_garbage_of_a_worker_is_no_event(frames: list[Any]) -> None:
    assert read_worker(frames) is None


def test_long_frames_are_passed_on_without_a_copy(sockets: tuple[Any, Any]) -> None:
    router, dealer = sockets
    payload = [b"s" * COPY_BYTES, b"l" * (COPY_BYTES + 1)]
    dealer.send_multipart([wire.encode(Heartbeat()), *payload])
    assert router.poll(10_000)
    frames = receive(router)
    assert frames is not None
    assert [type(frame) for frame in frames] == [bytes, bytes, bytes, zmq.Frame]
    assert send(router, frames[0], frames[2:])  # type: ignore[arg-type]
    assert dealer.recv_multipart() == payload


def test_nothing_to_receive_is_none(sockets: tuple[Any, Any]) -> None:
    assert receive(sockets[0]) is None


def test_a_message_to_nobody_is_not_sent(sockets: tuple[Any, Any]) -> None:
    assert not send(sockets[0], b"nobody", [b"hello"])
