"""Answers wait for the journal, are kept until acknowledged, and never lead to a second run."""

from core_bench import (
    CLIENT,
    OTHER,
    RUN,
    SESSION,
    CoreBench,
    create_run,
    create_sampler,
    dispatched,
    forward_backward,
    message,
    optim_step,
    ready_bench,
    sample,
    told,
)

from weft.client.messages import Ack, Goodbye, Hello, Void
from weft.engine.broker.answers import ANSWER_BYTES
from weft.engine.broker.events import Persist, Persisted
from weft.engine.broker.journal import Accepted, Outcome, Placed, Voided


def journaled_bench() -> CoreBench:
    """An open run; the test plays the journal from here on."""
    bench = ready_bench()
    bench.persists = False
    return bench


def records(actions: list[object]) -> list[Persist]:
    return [action for action in actions if isinstance(action, Persist)]


def test_an_accepted_command_is_recorded_and_dispatched_without_waiting() -> None:
    bench = journaled_bench()
    header = optim_step(1)
    actions = bench.say(header)
    assert actions[0] == Persist(4, Accepted(RUN, 1, [message(header)]))
    assert dispatched(actions) == [("optim_step", 1)]


def test_a_done_reply_waits_until_its_outcome_is_durable() -> None:
    bench = journaled_bench()
    bench.say(optim_step(1))
    assert bench.finish() == [Persist(5, Outcome(RUN, 1, ""))]
    assert bench.handle(Persisted(4)) == []
    assert told(bench.handle(Persisted(5))) == [(11, "")]


def test_a_failure_is_an_outcome_too() -> None:
    bench = journaled_bench()
    bench.say(optim_step(1))
    assert bench.fail("no_gradients") == [Persist(5, Outcome(RUN, 1, "no_gradients"))]
    assert told(bench.handle(Persisted(5))) == [(11, "no_gradients")]


def test_one_progress_of_the_journal_answers_all_before_it_in_order() -> None:
    bench = journaled_bench()
    bench.say(optim_step(1))
    bench.say(optim_step(2))
    bench.finish(-2)
    bench.finish(-1)
    assert told(bench.handle(Persisted(7))) == [(11, ""), (12, "")]


def test_a_repeat_before_the_outcome_is_durable_is_not_answered_early() -> None:
    bench = journaled_bench()
    bench.say(optim_step(1))
    bench.finish()
    assert bench.say(optim_step(1)) == []
    assert told(bench.handle(Persisted(5))) == [(11, "")]


def test_a_lease_is_recorded_before_it_is_used() -> None:
    bench = CoreBench(persists=False)
    bench.hello()
    bench.add_worker()
    actions = bench.say(create_run())
    assert records(actions)[1] == Persist(2, Placed(RUN, "w0", 1))  # type: ignore[arg-type]
    assert dispatched(actions) == [("create_run", 0)]


def test_a_void_is_acknowledged_when_it_is_durable() -> None:
    bench = journaled_bench()
    actions = bench.say(Void(request_id=9, run_id=RUN, first_seq=1, last_seq=2))
    assert actions == [Persist(4, Voided(RUN, 1, 2))]
    assert told(bench.handle(Persisted(4))) == [(9, "")]


def test_samples_do_not_wait_for_the_journal() -> None:
    bench = journaled_bench()
    bench.say(create_sampler(2))
    bench.finish()
    bench.say(sample(5))
    assert told(bench.finish()) == [(5, "")]


def test_an_acknowledged_command_is_never_run_again() -> None:
    bench = ready_bench()
    bench.say(optim_step(1))
    bench.finish()
    bench.say(Ack(request_ids=[11, 999]))
    assert told(bench.say(optim_step(1))) == [(11, "result_expired")]


def test_an_answer_nobody_fetches_expires_into_result_expired() -> None:
    bench = ready_bench(result_ttl_s=10)
    bench.say(create_sampler(2))
    bench.finish()
    bench.say(optim_step(1))
    bench.finish()
    bench.say(sample(5))
    bench.finish()
    bench.tick(11)
    assert told(bench.say(optim_step(1))) == [(11, "result_expired")]
    assert told(bench.say(sample(5))) == [(5, "result_expired")]
    assert dispatched(bench.say(optim_step(2))) == [("optim_step", 2)]


def test_an_unacknowledged_refusal_of_an_early_number_expires_and_stays_used_up() -> None:
    bench = ready_bench(result_ttl_s=10)
    bench.say(forward_backward(2, loss_fn="magic"))
    bench.tick(11)
    bench.say(optim_step(3))
    assert dispatched(bench.say(optim_step(1))) == [("optim_step", 1), ("optim_step", 3)]


def test_the_oldest_answers_go_when_a_session_keeps_too_much() -> None:
    bench = ready_bench(result_bytes=450 + 2 * ANSWER_BYTES)
    bench.say(Ack(request_ids=[1]))
    for seq in (1, 2, 3):
        bench.say(optim_step(seq))
        bench.finish(text="x" * 120)
    answers = [told(bench.say(optim_step(seq))) for seq in (1, 2, 3)]
    assert answers == [[(11, "result_expired")], [(12, "")], [(13, "")]]


def test_the_largest_session_gives_way_when_all_keep_too_much() -> None:
    bench = ready_bench(total_result_bytes=500 + 2 * ANSWER_BYTES)
    bench.hello(OTHER, b"second")
    bench.open_run(OTHER, b"second")
    for peer in (CLIENT, b"second"):
        bench.say(Ack(request_ids=[1]), peer=peer)
    bench.say(optim_step(1))
    bench.finish(text="x" * 400)
    other = optim_step(1, run_id=f"{OTHER}:train:0")
    bench.say(other, peer=b"second")
    bench.finish(text="x" * 100)
    assert told(bench.say(optim_step(1))) == [(11, "result_expired")]
    assert told(bench.say(other, peer=b"second"), b"second") == [(11, "")]


def test_an_answer_for_a_client_that_is_away_is_kept() -> None:
    bench = ready_bench()
    bench.say(optim_step(1))
    bench.say(Hello(versions=[1], session_id=SESSION), peer=b"new place")
    assert told(bench.finish(), b"new place") == [(11, "")]


def test_the_outcome_of_an_ended_session_is_recorded_and_dropped() -> None:
    bench = journaled_bench()
    bench.say(optim_step(1))
    bench.say(Goodbye())
    assert bench.finish() == [Persist(5, Outcome(RUN, 1, ""))]
    assert bench.handle(Persisted(5)) == []
    assert CLIENT not in bench.core._books.sessions.by_peer
