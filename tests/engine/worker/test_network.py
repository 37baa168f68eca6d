"""A worker's network thread against peers that send what they like, or go."""

import queue
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import zmq

from weft.client import wire
from weft.client.arrays import pack_arrays
from weft.client.messages import ForwardBackward, Header
from weft.client.worker_messages import Dispatch, Failed, WorkerHello
from weft.engine.trace import Trace
from weft.engine.worker.commands import ModelLimits
from weft.engine.worker.network import Network, Stopped

HANG_GUARD_MS = 20_000
LIMITS = ModelLimits(vocab_size=100, max_context=32, unit_tokens=8, max_datum_tokens=16)


class Peer:
    """A broker's back, by hand, and the network thread that it talks to."""

    network: Network

    def __init__(self, context: "zmq.Context[Any]", address: str) -> None:
        self.socket = context.socket(zmq.ROUTER)
        self.socket.rcvtimeo = HANG_GUARD_MS
        self.socket.bind(address)
        self.worker = b""

    def hear(self) -> Header:
        self.worker, raw, *_ = self.socket.recv_multipart()
        return wire.decode(raw)

    def dispatch(self, number: int, header: Header, *frames: Any) -> None:
        envelope = Dispatch(dispatch_id=number, lease_epoch=1, lane="local/s")
        self.socket.send_multipart(
            [self.worker, wire.encode(envelope), wire.encode(header), *frames]
        )


@pytest.fixture
def peer() -> Iterator[Peer]:
    context: zmq.Context[Any] = zmq.Context()
    made = Peer(context, "inproc://back")
    hello = WorkerHello(versions=[1], worker_id="w0", secret="", pid=1)
    network = made.network = Network(context, "inproc://back", hello, Trace(None))
    network.serve(LIMITS)
    network.start()
    assert made.hear() == hello
    yield made
    network.close()
    made.socket.close(0)
    context.term()


def call(array_name: str) -> tuple[ForwardBackward, list[memoryview]]:
    """A call whose only array is described as nothing that exists."""
    arrays, frames = pack_arrays({"tokens": np.arange(2, dtype=np.int32)})
    header = ForwardBackward(
        request_id=1,
        run_id="0" * 32 + ":train:0",
        seq=1,
        digest=b"",
        part=0,
        num_parts=1,
        num_datums=1,
        num_tokens=2,
        loss_fn="cross_entropy",
        loss_fn_config={},
        forward_only=False,
        arrays=[replace(arrays[0], name=array_name, dtype="int8")],
    )
    return replace(header, digest=wire.digest(header, frames)), frames


def refused(peer: Peer, number: int, array_name: str) -> Failed:
    header, frames = call(array_name)
    peer.dispatch(number, header, *frames)
    answer = peer.hear()
    assert isinstance(answer, Failed)
    return answer


def test_a_refusal_that_quotes_a_long_name_does_not_end_the_worker(peer: Peer) -> None:
    first = refused(peer, 1, "\0" * 50_000)
    assert (first.dispatch_id, first.code) == (1, "malformed")
    assert refused(peer, 2, "x").detail == "array 'x' has dtype 'int8', not int32 or float32"


def test_a_broker_that_is_gone_does_not_hold_up_the_end(peer: Peer) -> None:
    peer.socket.close(0)
    for _ in range(200):  # the other end learns of it a little later
        peer.network.send(b"an answer nobody waits for")
        try:
            found = peer.network.inbox.get(timeout=0.02)
        except queue.Empty:
            continue
        assert found == Stopped("the broker is gone")
        return
    raise AssertionError("the network thread waits for a broker that is gone")
