"""The end of a broker: what waits is refused, what has started may finish, within bounds."""

from core_bench import (
    CLIENT,
    OTHER,
    WORKER,
    optim_step,
    ready_bench,
    sample,
    sampling_bench,
    told,
)

from weft.client.messages import Failure, Hello
from weft.client.worker_messages import Stop, Withdraw
from weft.engine.broker.events import Finished, StopRequested, ToClient, ToWorker


def test_a_stopping_broker_finishes_what_was_dispatched_and_refuses_the_rest() -> None:
    bench = ready_bench()
    bench.say(optim_step(1))
    bench.say(optim_step(3))
    assert told(bench.handle(StopRequested())) == [(13, "stopping")]
    assert told(bench.say(optim_step(2))) == [(12, "stopping")]
    actions = bench.finish()
    assert told(actions) == [(11, "")]
    assert actions[-2:] == [ToWorker(WORKER, Stop()), Finished()]


def test_an_idle_broker_stops_at_once() -> None:
    bench = ready_bench()
    assert bench.handle(StopRequested()) == [ToWorker(WORKER, Stop()), Finished()]


def test_a_broker_does_not_wait_for_a_stuck_worker_for_ever() -> None:
    bench = ready_bench(stop_s=5)
    bench.say(optim_step(1))
    bench.handle(StopRequested())
    actions = bench.tick(6)
    assert (11, "stopping") in told(actions)
    assert Finished() in actions


def test_samples_have_less_time_than_commands() -> None:
    bench = sampling_bench(stop_s=30, stop_samples_s=2)
    bench.say(optim_step(1))
    bench.say(sample(5))
    key = bench.dispatches[-1][0].dispatch_id
    bench.handle(StopRequested())
    assert bench.tick(1.9) == []
    failure = Failure(request_id=5, code="stopping", detail="the server is shutting down")
    assert bench.tick(0.1) == [
        ToClient(CLIENT, failure),
        ToWorker(WORKER, Withdraw(dispatch_ids=[key])),
    ]
    assert told(bench.finish(-2)) == [(11, "")]


def test_a_sample_that_ends_in_time_is_answered() -> None:
    bench = sampling_bench(stop_samples_s=3)
    bench.say(sample(5))
    bench.handle(StopRequested())
    bench.now += 2.9
    actions = bench.finish()
    assert told(actions) == [(5, "")]
    assert actions[-1] == Finished()


def test_a_broker_that_only_samples_ends_when_their_time_is_over() -> None:
    bench = sampling_bench(stop_samples_s=2)
    bench.say(sample(5))
    bench.handle(StopRequested())
    actions = bench.tick(2)
    assert told(actions) == [(5, "stopping")]
    assert actions[-2:] == [ToWorker(WORKER, Stop()), Finished()]


def test_a_stopping_broker_takes_no_new_session() -> None:
    bench = ready_bench()
    bench.say(optim_step(1))
    bench.handle(StopRequested())
    hello = Hello(versions=[1], session_id=OTHER)
    assert told(bench.say(hello, peer=b"late"), b"late") == [(0, "stopping")]
