"""The broker behind real sockets: bytes on the wire, with a fake worker and two kinds of client."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import zmq
from core_bench import CARD, SESSION, checkpoint, create_run, optim_step
from fake_worker import FakeWorker

from weft.client import (
    AdamParams,
    Datum,
    ModelInput,
    SamplingParams,
    ServiceClient,
    TrainingClient,
    wire,
)
from weft.client.errors import BadRequest, EngineFailed, WeftError
from weft.client.limits import limit
from weft.client.messages import (
    CreateRun,
    CreateSampler,
    Header,
    Hello,
    Known,
    OptimStep,
    Query,
    Reply,
    Resume,
    Sample,
)
from weft.client.worker_messages import Stop, WorkerHello, WorkerProgress
from weft.engine.broker.config import BrokerConfig
from weft.engine.broker.shell import Broker
from weft.engine.files.checkpoint import Checkpoint
from weft.engine.files.store import CheckpointFiles

DEADLINE_S = 20
PROMPT = ModelInput.from_ints([1, 2, 3])

Context = zmq.Context[Any]
Start = Callable[..., Broker]


@pytest.fixture
def employ(context: Context) -> Iterator[Callable[..., FakeWorker]]:
    workers = []

    def begin(broker: Broker, **settings: Any) -> FakeWorker:
        worker = FakeWorker(context, broker.worker_address, **settings)
        workers.append(worker)
        return worker

    yield begin
    for worker in workers:
        worker.close()


@pytest.fixture
def connect(context: Context) -> Iterator[Callable[..., "RawClient"]]:
    clients = []

    def begin(broker: Broker) -> RawClient:
        clients.append(RawClient(context, broker.addresses[0]))
        return clients[-1]

    yield begin
    for client in clients:
        client.socket.close(0)


class RawClient:
    """A bare DEALER."""

    def __init__(self, context: Context, address: str) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.connect(address)

    def send(self, *frames: Header | bytes) -> None:
        raw = [wire.encode(item) if isinstance(item, Header) else item for item in frames]
        self.socket.send_multipart(raw)

    def receive(self) -> Any:
        assert self.socket.poll(DEADLINE_S * 1000), "no answer"
        return wire.decode(self.socket.recv_multipart()[0])

    def hello(self, session_id: str = SESSION) -> Any:
        self.send(Hello(versions=[1], session_id=session_id))
        return self.receive()


def with_digest(header: Any) -> Any:
    """The same command with the digest that a worker verifies."""
    return replace(header, digest=wire.digest(header, []))


def datum() -> Datum:
    weights = np.ones(3, np.float32)
    return Datum(PROMPT, {"target_tokens": np.array([2, 3, 4]), "weights": weights})


def open_run(service: ServiceClient) -> TrainingClient:
    return service.create_lora_training_client("tiny", rank=4, seed=1)


# Whole calls, with the real client.


@pytest.mark.parametrize("listen", ["inproc", "ipc", "tcp"])
def test_training_and_sampling_over_every_transport(
    start: Start, employ: Any, context: Context, tmp_path: Path, listen: str
) -> None:
    address = {
        "inproc": f"inproc://{uuid4().hex}",
        "ipc": f"ipc://{tmp_path}/front",
        "tcp": "tcp://127.0.0.1:*",
    }[listen]
    broker = start(address)
    employ(broker)
    with ServiceClient(base_url=broker.addresses[0], context=context) as service:
        run = open_run(service)
        passed = run.forward_backward([datum()] * 2, "cross_entropy")
        stepped = run.optim_step(AdamParams())
        assert passed.result(DEADLINE_S).metrics["loss:sum"] == pytest.approx(0.18)
        assert (stepped.result(DEADLINE_S).metrics or {})["step:max"] == 1
        sampler = run.save_weights_and_get_sampling_client()
        answer = sampler.sample(PROMPT, 2, SamplingParams(max_tokens=3)).result(DEADLINE_S)
        assert [sequence.tokens for sequence in answer.sequences] == [[4, 5, 6]] * 2


def test_a_call_of_several_parts_comes_back_whole(
    start: Start, employ: Any, context: Context
) -> None:
    broker = start()
    worker = employ(broker)
    tokens = ModelInput.from_ints([1] * 64)
    noise = np.random.default_rng(1).random(64, np.float32)
    targets = np.arange(64) % 97
    batch = [Datum(tokens, {"target_tokens": targets, "weights": noise})] * 4000
    with ServiceClient(base_url=broker.addresses[0], context=context) as service:
        output = open_run(service).forward_backward(batch, "cross_entropy").result(DEADLINE_S)
    assert len(output.loss_fn_outputs) == 4000
    assert output.loss_fn_outputs[-1]["logprobs"].to_numpy()[3] == np.float32(-0.03)
    assert sum(header.kind == "forward_backward" for header in worker.seen) > 1


def test_clients_wait_while_the_model_loads(start: Start, employ: Any, context: Context) -> None:
    broker = start()
    worker = employ(broker, is_ready=False)
    with ServiceClient(base_url=broker.addresses[0], context=context) as service:
        pending = threading.Thread(target=open_run, args=(service,))
        pending.start()
        worker.become_ready()
        pending.join(DEADLINE_S)
        assert not pending.is_alive()
    worker.wait_for(CreateRun)


def test_saved_states_are_listed(start: Start, employ: Any, context: Context) -> None:
    broker = start()
    employ(broker)
    with ServiceClient(base_url=broker.addresses[0], context=context) as service:
        run = open_run(service)
        path = run.save_state("first").result(DEADLINE_S).path
        listed = service.create_rest_client().list_user_checkpoints().result(DEADLINE_S)
        assert [item.tinker_path for item in listed.checkpoints] == [path]
        run.load_state(path).result(DEADLINE_S)
        with pytest.raises(WeftError, match="no checkpoint"):
            run.load_state(path + "x").result(DEADLINE_S)


# Peers that come and go.


def test_a_client_that_reconnects_loses_nothing(start: Start, employ: Any, connect: Any) -> None:
    broker = start("tcp://127.0.0.1:*")
    worker = employ(broker, hold=True)
    first = connect(broker)
    first.hello()
    first.send(with_digest(create_run()))
    worker.wait_for(CreateRun)
    first.socket.close(0)
    worker.release()
    second = connect(broker)
    second.hello()
    second.send(Resume(request_ids=[1, 2]))
    answers = [second.receive(), second.receive()]  # the work may end before it is asked for
    assert Known(request_ids=[1]) in answers
    assert [one.request_id for one in answers if isinstance(one, Reply)] == [1]


def test_a_message_after_a_reconnect_is_answered_with_unknown_session(
    start: Start, connect: Any
) -> None:
    client = connect(start())
    client.send(Query(request_id=3, what="status"))
    failure = client.receive()
    assert (failure.request_id, failure.code) == (3, "unknown_session")


def test_a_dead_worker_loses_its_runs_and_the_broker_lives(
    start: Start, employ: Any, connect: Any
) -> None:
    broker = start()
    worker = employ(broker)
    client = connect(broker)
    client.hello()
    client.send(with_digest(create_run()))
    client.receive()
    worker.hold = True
    client.send(with_digest(optim_step(1)))
    worker.wait_for(OptimStep)
    broker.worker_gone("worker-0", "it was killed")
    assert client.receive().code == "run_lost"
    employ(broker, worker_id="worker-1")
    client.send(with_digest(create_run(request_id=50, run_id=f"{SESSION}:train:1")))
    assert client.receive().kind == "reply"


def test_samples_survive_the_death_of_a_worker(start: Start, employ: Any, context: Context) -> None:
    broker = start()
    worker = employ(broker)
    with ServiceClient(base_url=broker.addresses[0], context=context) as service:
        sampler = service.create_sampling_client(base_model="tiny")
        worker.hold = True
        answer = sampler.sample(PROMPT, 1, SamplingParams(max_tokens=2))
        worker.wait_for(Sample)
        broker.worker_gone("worker-0", "it was killed")
        successor = employ(broker, worker_id="worker-1")
        assert answer.result(DEADLINE_S).sequences[0].tokens == [4, 5]
        successor.wait_for(CreateSampler)


def test_a_worker_with_a_wrong_secret_gets_no_work(start: Start, employ: Any, connect: Any) -> None:
    broker = start(secret="right")
    thief = employ(broker, secret="wrong")
    employ(broker, worker_id="honest", secret="right")
    client = connect(broker)
    client.hello()
    client.send(with_digest(create_run()))
    assert client.receive().kind == "reply"
    assert thief.wait_for(Stop)
    assert [header.kind for header in thief.seen] == ["stop"]


def test_a_peer_that_does_not_read_does_not_block_the_broker(
    start: Start, employ: Any, connect: Any
) -> None:
    broker = start()
    silent, lively = connect(broker), connect(broker)
    silent.socket.rcvhwm = 1
    silent.hello()
    for _ in range(12_000):
        silent.send(Query(request_id=1, what="status"))
    assert lively.hello("c" * 32).kind == "welcome"


# Bytes that are no messages.


GARBAGE: dict[str, list[bytes]] = {
    "nothing": [b""],
    "no msgpack": [b"\xc1\xc1\xc1"],
    "truncated": [wire.encode(create_run())[:-7]],
    "no map": [b"\x93\x01\x02\x03"],
    "unknown kind": [b"\x81\xa4kind\xa5bogus"],
    "huge header": [bytes(70_000)],
    "many frames": [wire.encode(Query(request_id=1, what="runs")), *[b"x"] * 200],
    "deep": [b"\x81\xa4kind" + b"\x91" * 600 + b"\x01"],
}


@pytest.mark.parametrize("frames", GARBAGE.values(), ids=GARBAGE.keys())
def test_garbage_is_refused_and_the_server_lives(
    start: Start, connect: Any, frames: list[bytes]
) -> None:
    client = connect(start())
    client.hello()
    client.send(*frames)
    assert client.receive().code in ("malformed", "too_large")
    client.send(Query(request_id=2, what="status"))
    assert client.receive().request_id == 2


def test_an_unknown_field_fails_the_request_and_uses_up_its_number(
    start: Start, employ: Any, connect: Any
) -> None:
    broker = start()
    employ(broker)
    client = connect(broker)
    client.hello()
    client.send(with_digest(create_run()))
    client.receive()
    raw = wire.encode(optim_step(1)).replace(b"beta1", b"gamma")
    client.send(raw)
    failure = client.receive()
    assert (failure.request_id, failure.code) == (11, "malformed")
    assert "gamma" in failure.detail
    client.send(with_digest(optim_step(2)))
    assert client.receive().request_id == 12


def test_a_giant_frame_ends_its_connection_only(start: Start, context: Context) -> None:
    broker = start("tcp://127.0.0.1:*")
    giant, honest = (RawClient(context, broker.addresses[0]) for _ in range(2))
    giant.hello()
    giant.send(Query(request_id=1, what="runs"), bytes(limit("part_bytes") * 3))
    giant.send(Query(request_id=2, what="runs"))
    assert giant.receive().code == "unknown_session"  # it was cut off, and has connected anew
    assert honest.hello("c" * 32).kind == "welcome"
    for client in (giant, honest):
        client.socket.close(0)


def test_garbage_from_a_worker_is_left_out(
    start: Start, employ: Any, connect: Any, context: Context
) -> None:
    broker = start()
    vandal = RawClient(context, broker.worker_address)
    vandal.send(b"\xc1")
    vandal.send(WorkerHello(versions=[1], worker_id="vandal", secret="", pid=1), b"more")
    vandal.send(b"\x81\xa4kind\xa4done")
    employ(broker)
    client = connect(broker)
    client.hello()
    client.send(with_digest(create_run()))
    assert client.receive().kind == "reply"
    vandal.socket.close(0)


# Beginning and end.


def test_stopping_finishes_what_was_dispatched(start: Start, employ: Any, connect: Any) -> None:
    broker = start()
    worker = employ(broker)
    client = connect(broker)
    client.hello()
    client.send(with_digest(create_run()))
    client.receive()
    worker.hold = True
    client.send(with_digest(optim_step(1)))
    worker.wait_for(OptimStep)
    broker.stop()
    client.send(with_digest(optim_step(2)))
    assert client.receive().code == "stopping"
    worker.release()
    assert client.receive().kind == "reply"
    assert broker.join(DEADLINE_S)
    worker.wait_for(Stop)


def test_a_setting_must_be_positive() -> None:
    with pytest.raises(BadRequest, match="lane_requests is 0"):
        BrokerConfig(lane_requests=0)


def test_the_owner_is_told_of_readiness_and_the_end(start: Start, employ: Any) -> None:
    ready, ended = threading.Event(), threading.Event()
    broker = start(on_ready=ready.set, on_finished=ended.set)
    employ(broker, card=CARD)
    assert ready.wait(DEADLINE_S)
    broker.stop()
    assert ended.wait(DEADLINE_S)


def test_the_owner_is_told_how_a_worker_loads_and_that_it_is_lost(
    start: Start, context: Context
) -> None:
    told: queue.SimpleQueue[object] = queue.SimpleQueue()
    broker = start(
        on_progress=lambda phase, fraction: told.put((phase, fraction)),
        on_lost=told.put,
        config=BrokerConfig(loading_expiry_s=0.5),
    )
    worker = context.socket(zmq.DEALER)
    worker.connect(broker.worker_address)
    for header in (
        WorkerHello(versions=[1], worker_id="w7", secret="", pid=1),
        WorkerProgress(phase="reading weights", fraction=0.4),
    ):
        worker.send(wire.encode(header))
    assert told.get(timeout=DEADLINE_S) == ("reading weights", 0.4)
    assert told.get(timeout=DEADLINE_S) == "w7"  # it says nothing more
    worker.close(0)


def test_calls_wait_for_a_worker_until_none_will_come(start: Start, context: Context) -> None:
    broker = start()
    with (
        ServiceClient(base_url=broker.addresses[0], context=context) as service,
        futures.ThreadPoolExecutor(1) as pool,
    ):
        created = pool.submit(service.create_lora_training_client, "tiny")
        broker.worker_awaited("it was killed")
        while service.get_status().result(DEADLINE_S)["detail"] != "it was killed":
            assert not created.done()
        broker.no_worker("it died too often")
        with pytest.raises(EngineFailed, match="it died too often"):
            created.result(DEADLINE_S)


def test_a_stopped_engine_fails_the_calls_of_its_clients(
    start: Start, employ: Any, context: Context
) -> None:
    broker = start()
    worker = employ(broker, train_credit=1)
    with ServiceClient(base_url=broker.addresses[0], context=context) as service:
        run = open_run(service)
        worker.hold = True
        steps = [run.optim_step(AdamParams()) for _ in range(3)]
        worker.wait_for(OptimStep)
        broker.stop()
        with pytest.raises(EngineFailed, match="shutting down"):
            steps[2].result(DEADLINE_S)
        worker.release()
        steps[0].result(DEADLINE_S)


def test_a_checkpoint_expires_by_the_clock_on_the_wall(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"weft://{'a' * 32}:train:0/weights/a"
    deleted = threading.Event()

    class Files(CheckpointFiles):
        def scan(self) -> list[Checkpoint]:
            return [checkpoint("a", path=path, expires=time.time() + 1000)]

        def delete(self, path: str) -> None:
            deleted.set()

    start(files=Files(tmp_path))
    slept = time.time() + 2000
    monkeypatch.setattr(time, "time", lambda: slept)
    assert deleted.wait(DEADLINE_S)
