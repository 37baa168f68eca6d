"""Why a request waits: every reason of the broker, and what it does not tell."""

from typing import Any

from core_bench import (
    CARD,
    CLIENT,
    OTHER,
    SESSION,
    WORKER,
    CoreBench,
    create_run,
    create_sampler,
    fork_run,
    forward_backward,
    optim_step,
    ready_bench,
    sample,
    sampling_bench,
    told,
)

from weft.client import wire
from weft.client.limits import limit
from weft.client.messages import Explain, Header, Reply
from weft.client.waiting import REASONS, Reason, read_reasons
from weft.client.worker_messages import Underway, WorkerHello, WorkerProgress, WorkerReady
from weft.engine.broker.events import NoWorker, StopRequested, WorkerAwaited, WorkerGone

SECOND = b"second client"


def ask(bench: CoreBench, *request_ids: int, peer: bytes = CLIENT) -> list[Reason]:
    """The reasons as a client reads them."""
    actions: list[Any] = bench.say(Explain(request_id=99, request_ids=list(request_ids)), peer=peer)
    (action,) = actions
    reply = wire.decode(wire.encode(action.header))
    assert isinstance(reply, Reply), reply
    reasons = list(read_reasons(reply.result, request_ids).values())
    assert {reason.code for reason in reasons} <= REASONS.keys()
    return reasons


def tiny_credit(tenant_of: Any = None) -> CoreBench:
    """A worker that takes one request at a time; one command of the run is under way."""
    bench = CoreBench(**({"tenant_of": tenant_of} if tenant_of else {}))
    bench.hello(api_key="a")
    bench.add_worker(train_credit=1, sample_credit=1)
    bench.open_run()
    bench.say(optim_step(1))
    return bench


def other_run(bench: CoreBench, api_key: str = "") -> None:
    """A run of another session, whose creation waits behind what is under way."""
    bench.hello(OTHER, SECOND, api_key)
    bench.say(create_run(request_id=1, run_id=f"{OTHER}:train:0"), peer=SECOND)


def test_a_call_waits_for_the_rest_of_its_parts() -> None:
    bench = ready_bench()
    bench.say(forward_backward(1, part=1, num_parts=3))
    assert ask(bench, 11) == [
        Reason(code="parts", detail="1 of its 3 parts have come", done=1, total=3)
    ]


def test_a_command_waits_for_a_number_that_has_not_come() -> None:
    bench = ready_bench()
    bench.say(optim_step(3))
    detail = "number 1 of its run has not come"
    assert ask(bench, 13) == [Reason(code="number", detail=detail, seq=1)]


def test_a_command_waits_for_the_parts_of_an_earlier_one() -> None:
    bench = ready_bench()
    bench.say(forward_backward(1, part=0, num_parts=2))
    bench.say(optim_step(2))
    detail = "of number 1 of its run 1 of 2 parts have come"
    assert ask(bench, 12) == [Reason(code="number", detail=detail, seq=1, done=1, total=2)]


def test_a_command_waits_for_its_run_to_open() -> None:
    bench = CoreBench()
    bench.hello()
    bench.add_worker()
    bench.say(create_run())
    bench.say(optim_step(1))
    detail = "its run is being opened: the worker has it, and nothing else"
    assert ask(bench, 11) == [Reason(code="opening", detail=detail)]


def test_a_command_waits_for_a_fork_before_it() -> None:
    bench = ready_bench()
    bench.say(fork_run(1))
    bench.say(optim_step(2))
    detail = "number 1 of its run makes a fork first: the worker has it, and nothing else"
    assert ask(bench, 12) == [Reason(code="forking", detail=detail, seq=1)]
    bench.fail("busy")
    detail = "number 1 of its run has not come"
    assert ask(bench, 12) == [Reason(code="number", detail=detail, seq=1)]


def test_what_needs_a_model_waits_for_a_worker_and_for_its_loading() -> None:
    bench = CoreBench()
    bench.hello()
    bench.say(create_run())
    assert ask(bench, 1) == [Reason(code="no_worker", detail="no worker has connected yet")]
    bench.work(WorkerHello(versions=[1], worker_id="w0", secret="", pid=1))
    detail = "the model is being loaded: starting"
    assert ask(bench, 1) == [Reason(code="loading", detail=detail)]
    bench.work(WorkerProgress(phase="reading weights", fraction=0.4))
    detail = "the model is being loaded: reading weights, 40 %"
    assert ask(bench, 1) == [Reason(code="loading", detail=detail, fraction=0.4)]


def test_a_worker_that_is_started_again_is_waited_for() -> None:
    bench = CoreBench()
    bench.hello()
    bench.add_worker()
    bench.handle(WorkerGone("w0", "signal 9"))
    bench.handle(WorkerAwaited("the worker died of signal 9 and is started again"))
    bench.say(create_run())
    why = "the worker died of signal 9 and is started again"
    assert ask(bench, 1) == [Reason(code="restarting", detail=why)]
    bench.work(WorkerHello(versions=[1], worker_id="w1", secret="", pid=1))
    assert ask(bench, 1) == [
        Reason(code="loading", detail=f"{why}; the model is being loaded: starting")
    ]
    bench.work(WorkerReady(model=CARD, train_credit=10, sample_credit=10))
    assert [reason.code for reason in ask(bench, 1)] == ["dispatched"]


def test_nothing_waits_for_a_worker_that_will_not_come() -> None:
    bench = CoreBench()
    bench.hello()
    bench.say(create_run())
    actions: list[Any] = bench.handle(NoWorker("it died too often"))
    assert told(actions) == [(1, "no_worker")]
    assert actions[0].header.detail == "it died too often"
    assert told(bench.say(create_sampler(2))) == [(2, "no_worker")]


def test_the_place_in_the_own_lane_is_told_and_of_others_only_their_number() -> None:
    bench = tiny_credit()
    other_run(bench)
    bench.say(optim_step(2))
    bench.say(optim_step(3))
    detail = "2nd in your lane, up to 1 request of 1 other session ahead"
    expected = Reason(code="queued", detail=detail, place=2, ahead=1, sessions=1)
    assert ask(bench, 13) == [expected]


def test_no_reason_names_another_tenant() -> None:
    bench = tiny_credit(tenant_of=lambda key: f"tenant-{key}")
    other_run(bench, api_key="b")
    bench.say(optim_step(2))
    reasons = [*ask(bench, 1, 11, 12), *ask(bench, 1, 11, 12, peer=SECOND)]
    assert [reason.code for reason in reasons] == [
        *("answered", "dispatched", "queued"),
        *("queued", "unknown", "unknown"),
    ]
    told_texts = " ".join(reason.detail for reason in reasons)
    assert not any(name in told_texts for name in (SESSION, OTHER, "tenant-", "train:"))


def test_the_next_one_waits_for_the_worker_to_have_room() -> None:
    bench = tiny_credit()
    bench.say(optim_step(2))
    detail = "it is next; the worker has 1 request under way, and takes more as they end"
    assert ask(bench, 12) == [Reason(code="credit", detail=detail, place=1, ahead=0, sessions=0)]


def test_a_sample_waits_for_its_sampler() -> None:
    bench = ready_bench()
    bench.say(create_sampler(2))
    bench.say(sample(5))
    assert ask(bench, 5) == [Reason(code="opening", detail="its sampler is being opened")]


def test_a_sample_waits_for_the_worker_that_its_sampler_needs() -> None:
    bench = CoreBench()
    bench.hello()
    bench.say(create_sampler(2))
    bench.say(sample(5))
    assert [reason.code for reason in ask(bench, 5)] == ["no_worker"]


def test_a_worker_tells_how_far_it_is_and_is_forgotten_with_its_work() -> None:
    bench = ready_bench()
    bench.say(forward_backward(1))
    key = bench.dispatches[-1][0].dispatch_id
    detail = "the worker has it, and nothing else"
    assert ask(bench, 11) == [Reason(code="dispatched", detail=detail)]
    bench.work(Underway(dispatch_ids=[key, 77], done=[3, 1], total=[8, 1]))
    detail = "the worker has computed 3 of its 8 units"
    assert ask(bench, 11) == [Reason(code="running", detail=detail, done=3, total=8)]


def test_a_silent_worker_is_noticed() -> None:
    bench = ready_bench()
    bench.say(optim_step(1))
    bench.now += 10.0
    detail = "the worker has it, and nothing else; nothing was heard of it for 10 s"
    assert ask(bench, 11) == [Reason(code="dispatched", detail=detail)]


def test_what_is_done_is_recorded_and_then_answered() -> None:
    bench = ready_bench()
    bench.say(optim_step(1))
    bench.persists = False
    bench.finish()
    assert [reason.code for reason in ask(bench, 11)] == ["recording"]
    assert [reason.code for reason in ask(bench, 1, 7)] == ["answered", "unknown"]


def test_a_stopping_server_says_how_long_it_waits() -> None:
    bench = sampling_bench(stop_s=30)
    bench.say(optim_step(1))
    bench.handle(StopRequested())
    bench.now += 10.0
    detail = "the server is shutting down; it waits 20 s more for what has started"
    assert ask(bench, 11) == [Reason(code="stopping", detail=detail)]


def test_what_one_message_may_ask_is_bounded_and_its_answer_fits() -> None:
    bench = CoreBench()
    bench.hello()
    bench.handle(WorkerAwaited("x" * 10_000))
    most = limit("explained_ids")
    for number in range(most):
        header: Header = create_run(request_id=1 + number, run_id=f"{SESSION}:train:{number}")
        bench.say(header)
    assert len(ask(bench, *range(1, most + 1))) == most
    too_many = Explain(request_id=99, request_ids=list(range(most + 1)))
    assert told(bench.say(too_many)) == [(99, "too_large")]


def test_the_peer_of_a_worker_asks_nothing() -> None:
    bench = ready_bench()
    assert bench.work(Explain(request_id=1, request_ids=[1]), peer=WORKER) == []
