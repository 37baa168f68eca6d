"""Sessions, versions, liveness, events and stopping of the broker's core."""

from typing import Any

import pytest
from core_bench import (
    CARD,
    CLIENT,
    LANE,
    OTHER,
    RUN,
    WORKER,
    CoreBench,
    create_run,
    dispatched,
    forward_backward,
    optim_step,
    ready_bench,
    told,
)

from weft.client.messages import (
    Failure,
    Goodbye,
    Header,
    Heartbeat,
    Known,
    Query,
    Resume,
    Watch,
)
from weft.client.worker_messages import Stop, WorkerHello, WorkerReady
from weft.engine.broker.events import (
    Action,
    ClientGone,
    MalformedMessage,
    ToClient,
    ToWorker,
    WorkerGone,
)


def refusal(code: str, detail: str, number: int = 0, retry_after_s: float = 0.0) -> ToClient:
    header = Failure(request_id=number, code=code, detail=detail, retry_after_s=retry_after_s)
    return ToClient(CLIENT, header)


def events(actions: list[Action]) -> list[str]:
    """The names of the events that watchers are told."""
    headers: list[Any] = [action.header for action in actions if isinstance(action, ToClient)]
    return [header.name for header in headers if header is not None and header.kind == "event"]


# Hello.


@pytest.mark.parametrize("header", [optim_step(1), Heartbeat(), Query(request_id=3, what="runs")])
def test_who_has_not_said_hello_is_asked_to(header: Header) -> None:
    number = getattr(header, "request_id", 0)
    assert CoreBench().say(header) == [
        refusal("unknown_session", "this connection has not said hello", number)
    ]


def test_a_message_only_a_server_sends_is_malformed() -> None:
    bench = ready_bench()
    assert bench.say(Known(request_ids=[])) == [
        refusal("malformed", "a client does not send 'known'")
    ]


def test_a_malformed_message_is_answered_and_the_session_lives() -> None:
    bench = ready_bench()
    event = MalformedMessage(CLIENT, "malformed", "header is not msgpack")
    assert bench.handle(event) == [refusal("malformed", "header is not msgpack")]
    assert dispatched(bench.say(optim_step(1))) == [("optim_step", 1)]


# Reconnecting.


def test_a_session_is_served_where_it_last_said_hello() -> None:
    bench = ready_bench()
    bench.say(optim_step(1))
    bench.hello(peer=b"new")
    assert told(bench.finish(), b"new") == [(11, "")]
    assert told(bench.say(Heartbeat())) == [(0, "unknown_session")]


def test_resume_tells_what_is_known_and_answers_what_is_finished() -> None:
    bench = ready_bench()
    bench.say(optim_step(1))
    bench.finish()
    bench.say(optim_step(2))
    bench.say(forward_backward(3, part=0, num_parts=2))
    bench.hello(peer=b"new")
    actions = bench.say(Resume(request_ids=[11, 12, 13, 14]), peer=b"new")
    assert actions[0] == ToClient(b"new", Known(request_ids=[11, 12]))
    assert told(actions[1:], b"new") == [(11, "")]


def test_a_client_that_cannot_be_reached_gets_its_answers_when_it_is_back() -> None:
    bench = ready_bench()
    bench.say(optim_step(1))
    bench.handle(ClientGone(CLIENT))
    assert told(bench.finish()) == []
    bench.hello(peer=b"new")
    actions = bench.say(Resume(request_ids=[11]), peer=b"new")
    assert told(actions[1:], b"new") == [(11, "")]


# Liveness.


def test_a_silent_broker_sends_heartbeats() -> None:
    bench = ready_bench(heartbeat_s=3)
    assert bench.tick(2) == []
    assert bench.tick(1) == [ToClient(CLIENT, Heartbeat()), ToWorker(WORKER, Heartbeat())]
    assert bench.tick(1) == []


def test_a_session_that_is_silent_too_long_ends() -> None:
    bench = ready_bench(session_ttl_s=100, worker_expiry_s=1000, heartbeat_s=1000)
    bench.say(optim_step(2))
    bench.tick(101)
    assert told(bench.say(Heartbeat())) == [(0, "unknown_session")]
    bench.hello()
    assert told(bench.say(optim_step(2))) == [(12, "session_expired")]
    assert told(bench.say(optim_step(1))) == [(11, "session_expired")]
    assert dispatched(bench.say(optim_step(3))) == [("optim_step", 3)]


def test_a_heartbeat_keeps_a_session() -> None:
    bench = ready_bench(session_ttl_s=100, worker_expiry_s=1000)
    for _ in range(3):
        bench.tick(60)
        assert bench.say(Heartbeat()) == []


def test_a_run_outlives_its_session() -> None:
    bench = ready_bench()
    bench.say(forward_backward(1))
    bench.say(forward_backward(3))
    bench.say(Goodbye())
    bench.finish()
    bench.hello(OTHER)
    assert told(bench.say(optim_step(2))) == [(12, "session_expired")]
    assert dispatched(bench.say(optim_step(4))) == [("optim_step", 4)]


def test_a_silent_worker_is_lost() -> None:
    bench = ready_bench(worker_expiry_s=15)
    bench.say(optim_step(1))
    assert told(bench.tick(15)) == [(0, "")]  # only a heartbeat
    assert (11, "run_lost") in told(bench.tick(1))


def test_a_loading_worker_is_given_more_time() -> None:
    bench = CoreBench(worker_expiry_s=15, loading_expiry_s=60)
    hello = WorkerHello(versions=[1], worker_id="w0", secret="", pid=1)
    bench.work(hello)
    bench.tick(59)
    ready = WorkerReady(model=CARD, train_credit=1, sample_credit=1)
    assert bench.work(ready) == []
    bench.tick(14)
    assert bench.work(Heartbeat()) == []


def test_a_worker_that_was_given_up_is_told_to_stop() -> None:
    bench = ready_bench()
    bench.tick(16)
    assert bench.work(Heartbeat()) == [ToWorker(WORKER, Stop())]


def test_a_worker_without_the_secret_is_refused() -> None:
    bench = CoreBench(secret="s3cret")
    hello = WorkerHello(versions=[1], worker_id="w0", secret="guess", pid=1)
    (action,) = bench.work(hello)
    assert action.header.code == "unauthorized"  # type: ignore[union-attr]
    assert bench.work(WorkerReady(model=CARD, train_credit=1, sample_credit=1)) == [
        ToWorker(WORKER, Stop())
    ]


# Watching.


def test_a_watcher_is_told_what_happens() -> None:
    bench = CoreBench()
    bench.hello()
    bench.say(Watch(request_id=9, enabled=True))
    assert events(bench.add_worker()) == ["worker_ready"]
    assert events(bench.say(create_run())) == ["dispatched"]
    assert events(bench.finish()) == ["run_created", "done"]
    bench.say(optim_step(1))
    assert events(bench.fail("no_gradients")) == ["failed"]
    assert events(bench.handle(WorkerGone("w0", "it died"))) == ["run_lost", "worker_lost"]
    bench.say(Watch(request_id=10, enabled=False))
    assert events(bench.add_worker()) == []


def test_the_event_of_a_dispatch_names_its_lane() -> None:
    bench = ready_bench()
    bench.say(Watch(request_id=9, enabled=True))
    actions: list[Any] = bench.say(optim_step(1))
    fields = next(item.header.fields for item in actions if item.header.kind == "event")
    ids = {"run_id": RUN, "seq": 1, "request_id": 11}
    assert fields == {"kind": "optim_step", "lane": LANE, **ids}


def test_a_watcher_sees_nothing_of_other_tenants() -> None:
    bench = CoreBench(tenant_of=lambda key: key)
    bench.add_worker()
    bench.hello(api_key="a")
    bench.hello(OTHER, b"spy", api_key="b")
    bench.say(Watch(request_id=1, enabled=True), peer=b"spy")
    assert events(bench.say(create_run())) == []


def test_watchers_are_bounded() -> None:
    bench = CoreBench(watchers=1)
    bench.hello()
    bench.hello(OTHER, b"second")
    bench.say(Watch(request_id=1, enabled=True))
    late = bench.say(Watch(request_id=1, enabled=True), peer=b"second")
    assert told(late, b"second") == [(1, "busy")]
