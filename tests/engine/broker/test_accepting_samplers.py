"""Withdrawals at the broker's door, and how samplers open, serve and close."""

import pytest
from core_bench import (
    CLIENT,
    LANE,
    OTHER,
    RUN,
    SAMPLER,
    SESSION,
    WORKER,
    CoreBench,
    create_sampler,
    dispatched,
    message,
    optim_step,
    ready_bench,
    sample,
    sampling_bench,
    save_for_sampler,
    told,
)

from weft.client.messages import (
    Cancel,
    CloseRun,
    CloseSampler,
    Reply,
)
from weft.client.worker_messages import Dispatch, Withdraw
from weft.engine.broker.events import ToClient, ToWorker


def test_queued_work_can_be_cancelled_and_its_number_is_used_up() -> None:
    bench = CoreBench()
    bench.hello()
    bench.add_worker(train_credit=1)
    bench.open_run()
    for seq in (1, 2, 3):
        bench.say(optim_step(seq))
    assert told(bench.say(Cancel(request_id=9, target_id=12))) == [(9, ""), (12, "cancelled")]
    assert dispatched(bench.finish()) == [("optim_step", 3)]


def test_dispatched_work_is_too_late_to_cancel() -> None:
    bench = ready_bench()
    bench.say(optim_step(1))
    assert told(bench.say(Cancel(request_id=9, target_id=11))) == [(9, "too_late")]
    bench.finish()
    assert told(bench.say(Cancel(request_id=9, target_id=11))) == [(9, "too_late")]
    assert told(bench.say(Cancel(request_id=9, target_id=55))) == [(9, "not_found")]


def test_a_repeated_cancel_is_answered_like_the_first() -> None:
    bench = ready_bench()
    bench.say(optim_step(2))
    bench.say(Cancel(request_id=9, target_id=12))
    assert told(bench.say(Cancel(request_id=9, target_id=12))) == [(9, "")]


def test_a_held_number_that_is_cancelled_is_skipped() -> None:
    bench = ready_bench()
    bench.say(optim_step(2))
    bench.say(Cancel(request_id=9, target_id=12))
    bench.say(optim_step(3))
    assert dispatched(bench.say(optim_step(1))) == [("optim_step", 1), ("optim_step", 3)]


def test_a_closed_run_cancels_what_is_unfinished_and_is_withdrawn() -> None:
    bench = ready_bench()
    bench.say(optim_step(1))
    bench.say(optim_step(3))
    actions = bench.say(CloseRun(request_id=9, run_id=RUN))
    assert told(actions) == [(9, ""), (11, "cancelled"), (13, "cancelled")]
    assert ToWorker(WORKER, Withdraw(dispatch_ids=[2], run_ids=[RUN])) in actions
    assert told(bench.say(optim_step(4))) == [(14, "not_found")]
    assert bench.finish() == []


def test_a_closed_sampler_takes_no_more_and_is_withdrawn_when_idle() -> None:
    bench = sampling_bench()
    bench.say(sample(5))
    close = CloseSampler(request_id=6, sampler_id=SAMPLER)
    assert bench.say(close) == [ToClient(CLIENT, Reply(request_id=6, result={}))]
    assert told(bench.say(sample(7))) == [(7, "not_found")]
    actions = bench.finish(stop_reasons=["length"])
    assert told(actions) == [(5, "")]
    assert ToWorker(WORKER, Withdraw(sampler_ids=[SAMPLER])) in actions


def test_an_idle_sampler_is_withdrawn_at_once() -> None:
    bench = sampling_bench()
    actions = bench.say(CloseSampler(request_id=6, sampler_id=SAMPLER))
    assert ToWorker(WORKER, Withdraw(sampler_ids=[SAMPLER])) in actions


# Samplers.


def test_a_sample_goes_to_the_worker_of_its_sampler() -> None:
    bench = sampling_bench()
    header = sample(5)
    assert bench.say(header, b"prompt") == [
        ToWorker(
            WORKER,
            Dispatch(dispatch_id=3, lease_epoch=0, lane=LANE),
            message(header, b"prompt"),
        )
    ]


def test_samples_wait_while_their_sampler_opens() -> None:
    bench = ready_bench()
    bench.say(save_for_sampler(1))
    assert bench.say(sample(5)) == []
    actions = bench.finish()
    assert (told(actions), dispatched(actions)) == ([(11, "")], [("sample", 5)])


def test_samples_fail_with_the_sampler_they_wait_for() -> None:
    bench = ready_bench()
    bench.say(save_for_sampler(1))
    bench.say(sample(5))
    assert told(bench.fail("non_finite")) == [(5, "non_finite"), (11, "non_finite")]
    assert told(bench.say(sample(6))) == [(6, "not_found")]


def test_a_sampler_id_is_used_once() -> None:
    bench = sampling_bench()
    assert told(bench.say(create_sampler(7))) == [(7, "")]  # the same again
    assert told(bench.say(create_sampler(8, base_model="other"))) == [(8, "conflict")]
    assert told(bench.say(save_for_sampler(1))) == [(11, "conflict")]


@pytest.mark.parametrize(
    "fields",
    [
        {"base_model": "", "model_path": ""},
        {"base_model": "tiny", "model_path": "weft://x"},
        {"sampler_id": f"{OTHER}:sample:0"},
        {"sampler_id": f"{SESSION}:sample:x"},
    ],
)
def test_a_bad_sampler_is_refused(fields: dict[str, str]) -> None:
    bench = ready_bench()
    assert told(bench.say(create_sampler(7, **fields))) == [(7, "bad_request")]


@pytest.mark.parametrize("fields", [{"num_samples": 0}, {"num_tokens": 0}, {"max_tokens": -2}])
def test_a_bad_sample_is_refused(fields: dict[str, int]) -> None:
    bench = sampling_bench()
    assert told(bench.say(sample(5, **fields))) == [(5, "bad_request")]
