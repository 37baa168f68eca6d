"""Bounds of queues, bytes, runs and samplers: busy, and never a wedge."""

from typing import Any

import pytest
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
    optim_step,
    ready_bench,
    sampling_bench,
    told,
)

from weft.client.messages import (
    CloseRun,
    Failure,
    Goodbye,
    Void,
)
from weft.engine.broker.events import ToClient


def refusal(number: int, code: str, detail: str, retry_after_s: float = 0.0) -> ToClient:
    header = Failure(request_id=number, code=code, detail=detail, retry_after_s=retry_after_s)
    return ToClient(CLIENT, header)


def test_more_early_numbers_than_may_be_held_are_busy_and_not_used_up() -> None:
    bench = ready_bench(held_commands=2)
    bench.say(optim_step(2))
    bench.say(optim_step(3))
    assert bench.say(optim_step(4)) == [
        refusal(14, "busy", "2 commands of the run wait for earlier ones", 0.25)
    ]
    bench.say(optim_step(1))
    assert dispatched(bench.say(optim_step(4))) == [("optim_step", 4)]


def test_a_full_lane_is_busy_and_the_number_can_be_sent_again() -> None:
    bench = CoreBench(lane_requests=2)
    bench.hello()
    bench.add_worker(train_credit=1)
    bench.open_run()
    for seq in (1, 2, 3):
        bench.say(optim_step(seq))
    assert told(bench.say(optim_step(4))) == [(14, "busy")]
    bench.finish()
    assert told(bench.say(optim_step(4))) == []


def test_bytes_that_wait_are_bounded_per_session() -> None:
    bench = CoreBench(lane_bytes=8000)
    bench.hello()
    bench.add_worker(train_credit=1)
    bench.open_run()
    bench.say(forward_backward(1), bytes(3000))
    bench.say(forward_backward(2), bytes(3000))
    bench.say(forward_backward(3), bytes(3000))
    assert told(bench.say(forward_backward(4), bytes(3000))) == [(14, "busy")]
    bench.finish()
    assert told(bench.say(forward_backward(4), bytes(3000))) == []


def test_bytes_that_wait_are_bounded_in_total() -> None:
    bench = CoreBench(lane_bytes=20_000, total_bytes=8_000)
    bench.hello()
    bench.hello(OTHER, b"second")
    bench.say(create_run())
    bench.say(create_run(run_id=f"{OTHER}:train:0"), peer=b"second")
    bench.say(forward_backward(1), bytes(6000))
    late = forward_backward(1, run_id=f"{OTHER}:train:0")
    assert told(bench.say(late, bytes(6000), peer=b"second"), b"second") == [(11, "busy")]


def test_early_numbers_leave_room_for_the_next_one() -> None:
    bench = ready_bench(lane_bytes=10_000)
    bench.say(forward_backward(2), bytes(4000))
    assert told(bench.say(forward_backward(3), bytes(4000))) == [(13, "busy")]
    actions = bench.say(forward_backward(1), bytes(4500))
    assert dispatched(actions) == [("forward_backward", 1), ("forward_backward", 2)]


def test_the_first_part_of_a_call_takes_room_for_all() -> None:
    bench = CoreBench(lane_bytes=20_000)
    bench.hello()
    bench.add_worker(train_credit=1)
    bench.open_run()
    bench.say(optim_step(1))  # fills the credit, so that all later ones wait
    bench.say(forward_backward(2, part=0, num_parts=3), bytes(2000))
    bench.say(optim_step(3))
    other = create_run(request_id=2, run_id=f"{SESSION}:train:1")
    bench.say(other)
    assert told(bench.say(forward_backward(4, num_parts=2), bytes(2000))) == [(14, "busy")]
    for part in (1, 2):
        actions = bench.say(forward_backward(2, part=part, num_parts=3), bytes(2000))
        assert told(actions) == []


@pytest.mark.parametrize(
    ("header", "size"),
    [
        pytest.param(forward_backward(1), 1_100_000, id="part"),
        pytest.param(forward_backward(1, num_parts=4097), 10, id="number of parts"),
        pytest.param(forward_backward(1, num_parts=400), 900_000, id="call"),
    ],
)
def test_what_is_too_large_uses_up_its_number(header: Any, size: int) -> None:
    bench = ready_bench()
    assert told(bench.say(header, bytes(size))) == [(11, "too_large")]
    assert dispatched(bench.say(optim_step(2))) == [("optim_step", 2)]


def test_runs_of_a_session_are_bounded() -> None:
    bench = ready_bench(runs=1)
    second = create_run(request_id=2, run_id=f"{SESSION}:train:1")
    assert told(bench.say(second)) == [(2, "busy")]
    bench.say(CloseRun(request_id=3, run_id=RUN))
    assert dispatched(bench.say(second)) == [("create_run", 0)]


def test_samplers_of_a_session_are_bounded() -> None:
    bench = sampling_bench(samplers=1)
    second = create_sampler(7, sampler_id=f"{SESSION}:sample:1")
    assert told(bench.say(second)) == [(7, "busy")]


def test_ranges_voided_ahead_are_bounded() -> None:
    bench = ready_bench(void_ranges=1)
    bench.say(Void(request_id=2, run_id=RUN, first_seq=3, last_seq=3))
    ahead = Void(request_id=3, run_id=RUN, first_seq=5, last_seq=5)
    assert told(bench.say(ahead)) == [(3, "busy")]
    assert told(bench.say(Void(request_id=4, run_id=RUN, first_seq=1, last_seq=2))) == [(4, "busy")]


def test_a_run_that_found_no_room_holds_its_commands_until_it_comes_again() -> None:
    bench = CoreBench(total_bytes=200, lane_bytes=10_000)
    bench.hello()
    bench.add_worker()
    assert told(bench.say(create_run())) == [(1, "busy")]
    bench = CoreBench()
    bench.hello()
    bench.add_worker()
    bench.say(create_run())
    bench.say(optim_step(1))
    bench.fail("busy")
    assert dispatched(bench.say(create_run())) == [("create_run", 0)]
    assert dispatched(bench.finish()) == [("optim_step", 1)]


def test_a_run_whose_number_0_is_given_up_is_not_created() -> None:
    bench = CoreBench()
    bench.hello()
    bench.add_worker()
    bench.say(create_run())
    bench.fail("busy")
    bench.say(optim_step(1))
    void = Void(request_id=9, run_id=RUN, first_seq=0, last_seq=0)
    assert sorted(told(bench.say(void))) == [(9, ""), (11, "not_found")]
    assert told(bench.say(create_run(request_id=2))) == [(2, "cancelled")]


def test_a_run_that_was_never_created_goes_with_its_session() -> None:
    bench = CoreBench()
    bench.hello()
    bench.add_worker()
    bench.say(create_run())
    bench.fail("busy")
    bench.say(Goodbye())
    bench.hello()
    assert told(bench.say(optim_step(1))) == [(11, "not_found")]
