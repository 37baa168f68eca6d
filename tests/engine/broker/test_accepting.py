"""Order, repeats, refusals, voids and limits of requests at the broker's door."""

from typing import Any

import pytest
from core_bench import (
    CLIENT,
    LANE,
    OTHER,
    RUN,
    SESSION,
    WORKER,
    CoreBench,
    create_run,
    create_sampler,
    digest,
    dispatched,
    forward_backward,
    message,
    optim_step,
    ready_bench,
    sample,
    sampling_bench,
    save_for_sampler,
    save_state,
    told,
)

from weft.client import wire
from weft.client.messages import (
    CloseRun,
    Failure,
    Goodbye,
    LoadState,
    Query,
    Reply,
    Resume,
    Void,
)
from weft.client.worker_messages import Dispatch
from weft.engine.broker.events import MalformedMessage, ToClient, ToWorker


def refusal(number: int, code: str, detail: str, retry_after_s: float = 0.0) -> ToClient:
    header = Failure(request_id=number, code=code, detail=detail, retry_after_s=retry_after_s)
    return ToClient(CLIENT, header)


# Order.


def test_a_command_is_dispatched_with_its_bytes_untouched() -> None:
    bench = ready_bench()
    header = forward_backward(1)
    assert bench.say(header, b"tokens") == [
        ToWorker(
            WORKER,
            Dispatch(dispatch_id=2, lease_epoch=1, lane=LANE),
            message(header, b"tokens"),
        )
    ]


def test_commands_are_dispatched_in_the_order_of_their_numbers() -> None:
    bench = ready_bench()
    assert bench.say(optim_step(2)) == []
    assert bench.say(forward_backward(3)) == []
    actions = bench.say(forward_backward(1))
    assert dispatched(actions) == [
        ("forward_backward", 1),
        ("optim_step", 2),
        ("forward_backward", 3),
    ]


def test_parts_of_a_call_go_together_when_all_have_come() -> None:
    bench = ready_bench()
    late, early = (forward_backward(1, part=part, num_parts=2) for part in (0, 1))
    assert bench.say(early, b"y") == []
    lease = Dispatch(dispatch_id=2, lease_epoch=1, lane=LANE)
    assert bench.say(late, b"x") == [
        ToWorker(WORKER, lease, message(late, b"x")),
        ToWorker(WORKER, lease, message(early, b"y")),
    ]


def test_a_call_without_all_its_parts_holds_up_only_its_own_run() -> None:
    bench = ready_bench()
    bench.say(forward_backward(1, part=0, num_parts=2))
    assert bench.say(optim_step(2)) == []
    other = create_run(request_id=2, run_id=f"{SESSION}:train:1")
    assert dispatched(bench.say(other)) == [("create_run", 0)]


def test_commands_wait_until_their_run_is_created() -> None:
    bench = CoreBench()
    bench.hello()
    bench.add_worker()
    assert dispatched(bench.say(create_run())) == [("create_run", 0)]
    assert bench.say(forward_backward(1)) == []
    actions = bench.finish()
    assert told(actions) == [(1, "")]
    assert dispatched(actions) == [("forward_backward", 1)]


def test_a_failed_command_does_not_block_the_next() -> None:
    bench = ready_bench()
    bench.say(forward_backward(1))
    assert told(bench.fail("non_finite")) == [(11, "non_finite")]
    assert dispatched(bench.say(optim_step(2))) == [("optim_step", 2)]


def test_a_refused_number_is_used_up() -> None:
    bench = ready_bench()
    assert bench.say(forward_backward(2)) == []
    actions = bench.say(forward_backward(1, loss_fn="magic"))
    assert told(actions) == [(11, "bad_request")]
    assert dispatched(actions) == [("forward_backward", 2)]


def test_an_early_number_that_is_refused_is_skipped_in_its_turn() -> None:
    bench = ready_bench()
    assert told(bench.say(save_state(2, name="../up"))) == [(12, "bad_request")]
    bench.say(optim_step(3))
    assert dispatched(bench.say(forward_backward(1))) == [
        ("forward_backward", 1),
        ("optim_step", 3),
    ]


def test_an_unreadable_command_uses_up_its_number() -> None:
    bench = ready_bench()
    bench.say(optim_step(2))
    event = MalformedMessage(CLIENT, "malformed", "it has no field 'x'", 11, RUN, 1)
    actions = bench.handle(event)
    assert actions[0] == refusal(11, "malformed", "it has no field 'x'")
    assert dispatched(actions) == [("optim_step", 2)]


def test_parts_that_contradict_each_other_fail_the_call_once() -> None:
    bench = ready_bench()
    bench.say(forward_backward(1, part=0, num_parts=3))
    assert told(bench.say(forward_backward(1, part=1, num_parts=2))) == [(11, "conflict")]
    assert told(bench.say(forward_backward(1, part=2, num_parts=3))) == []
    assert dispatched(bench.say(optim_step(2))) == [("optim_step", 2)]


# Void.


def test_a_voided_range_is_used_up() -> None:
    bench = ready_bench()
    bench.say(optim_step(4))
    actions = bench.say(Void(request_id=9, run_id=RUN, first_seq=1, last_seq=3))
    assert ToClient(CLIENT, Reply(request_id=9, result={})) in actions
    assert dispatched(actions) == [("optim_step", 4)]


def test_a_void_ahead_of_its_turn_waits_for_it() -> None:
    bench = ready_bench()
    bench.say(Void(request_id=9, run_id=RUN, first_seq=2, last_seq=3))
    bench.say(optim_step(4))
    assert dispatched(bench.say(forward_backward(1))) == [
        ("forward_backward", 1),
        ("optim_step", 4),
    ]


def test_a_repeated_void_is_answered_again() -> None:
    bench = ready_bench()
    void = Void(request_id=9, run_id=RUN, first_seq=1, last_seq=3)
    assert bench.say(void) == bench.say(void) == [ToClient(CLIENT, Reply(request_id=9, result={}))]


def test_a_void_fails_a_call_of_which_parts_are_missing() -> None:
    bench = ready_bench()
    bench.say(forward_backward(1, part=0, num_parts=2))
    actions = bench.say(Void(request_id=9, run_id=RUN, first_seq=1, last_seq=1))
    assert told(actions) == [(11, "cancelled"), (9, "")]


def test_a_void_spares_a_whole_command() -> None:
    bench = ready_bench()
    bench.say(optim_step(2))
    actions = bench.say(Void(request_id=9, run_id=RUN, first_seq=1, last_seq=2))
    assert dispatched(actions) == [("optim_step", 2)]


# Repeats.


def test_a_repeat_is_answered_from_memory() -> None:
    bench = ready_bench()
    bench.say(forward_backward(1))
    first = bench.finish()
    again = bench.say(forward_backward(1))
    assert again == first
    assert dispatched(again) == []


def test_a_repeat_of_unfinished_work_waits_for_the_one_outcome() -> None:
    bench = ready_bench()
    bench.say(forward_backward(1))
    assert bench.say(forward_backward(1)) == []
    assert bench.say(forward_backward(1, request_id=77)) == []
    assert told(bench.finish()) == [(11, ""), (77, "")]


def test_the_same_number_with_other_content_is_a_conflict() -> None:
    bench = ready_bench()
    bench.say(forward_backward(1))
    twisted = forward_backward(1, digest=digest("other"), request_id=12)
    assert told(bench.say(twisted)) == [(12, "conflict")]
    assert told(bench.finish()) == [(11, "")]


def test_a_repeated_refusal_is_refused_again() -> None:
    bench = ready_bench()
    bench.say(forward_backward(1, loss_fn="magic"))
    assert told(bench.say(forward_backward(1, loss_fn="magic"))) == [(11, "bad_request")]


def test_a_repeated_part_is_ignored() -> None:
    bench = ready_bench()
    bench.say(forward_backward(1, part=0, num_parts=2))
    assert bench.say(forward_backward(1, part=0, num_parts=2)) == []
    assert len(bench.say(forward_backward(1, part=1, num_parts=2))) == 2


def test_a_request_id_cannot_serve_two_commands() -> None:
    bench = ready_bench()
    bench.say(forward_backward(1))
    assert told(bench.say(optim_step(2, request_id=11))) == [(11, "conflict")]


def test_a_repeated_sample_is_answered_from_memory() -> None:
    bench = sampling_bench()
    bench.say(sample(5))
    first = bench.finish(stop_reasons=["length"])
    assert bench.say(sample(5)) == first
    assert told(bench.say(sample(5, digest=digest("other")))) == [(5, "conflict")]


# Ownership and unknown things.


def two_tenants() -> CoreBench:
    bench = CoreBench(tenant_of=lambda key: {"": "local", "b": "tenant b"}.get(key))
    bench.hello()
    bench.add_worker()
    bench.open_run()
    bench.hello(OTHER, b"foreign", api_key="b")
    return bench


@pytest.mark.parametrize(
    "header",
    [
        forward_backward(1, run_id=f"{OTHER}:train:7", request_id=11),
        Void(request_id=11, run_id=f"{OTHER}:train:7", first_seq=1, last_seq=2),
        CloseRun(request_id=11, run_id=f"{OTHER}:train:7"),
        sample(11, sampler_id="nobody"),
    ],
    ids=lambda header: header.kind,
)
def test_unknown_runs_and_samplers_are_not_found(header: Any) -> None:
    bench = ready_bench()
    assert told(bench.say(header)) == [(11, "not_found")]


def test_foreign_ids_answer_like_unknown_ones() -> None:
    bench = two_tenants()
    bench.say(create_sampler(3))
    bench.finish()
    foreign = [forward_backward(1), CloseRun(request_id=2, run_id=RUN), sample(4)]
    answers = [told(bench.say(header, peer=b"foreign"), b"foreign") for header in foreign]
    assert answers == [[(11, "not_found")], [(2, "not_found")], [(4, "not_found")]]


def test_a_second_session_of_the_tenant_may_use_a_run() -> None:
    bench = ready_bench()
    bench.hello(OTHER, b"second")
    actions = bench.say(forward_backward(1), peer=b"second")
    assert dispatched(actions) == [("forward_backward", 1)]
    assert told(bench.finish(), b"second") == [(11, "")]


@pytest.mark.parametrize(
    "run_id",
    [f"{OTHER}:train:0", f"{SESSION}:train:", f"{SESSION}:train:-1", f"{SESSION}:train:00", "x"],
)
def test_a_run_id_is_made_from_the_session(run_id: str) -> None:
    bench = CoreBench()
    bench.hello()
    assert told(bench.say(create_run(run_id=run_id))) == [(1, "bad_request")]


def test_the_run_of_an_ended_session_is_not_taken_over_by_another_tenant() -> None:
    bench = two_tenants()
    bench.say(Goodbye())
    bench.hello(SESSION, b"thief", api_key="b")
    assert told(bench.say(create_run(5), peer=b"thief"), b"thief") == [(5, "unknown_session")]
    bench.hello("c" * 32, b"second")
    query = Query(request_id=6, what="run", subject=RUN)
    assert told(bench.say(query, peer=b"second"), b"second") == [(6, "")]


@pytest.mark.parametrize("fields", [{"ttl_s": 60}, {"user_metadata": {"a": "b"}}], ids=str)
def test_what_belongs_to_a_file_is_refused_without_one(fields: dict[str, Any]) -> None:
    bench = ready_bench()
    assert told(bench.say(save_for_sampler(1, **fields))) == [(11, "bad_request")]


def test_a_run_that_starts_from_nothing_has_no_optimizer_to_start_with() -> None:
    bench = CoreBench()
    bench.hello()
    bench.add_worker()
    assert told(bench.say(create_run(with_optimizer=True))) == [(1, "bad_request")]


def test_a_refusal_that_quotes_a_long_path_fits_into_a_header() -> None:
    bench = ready_bench()
    header = LoadState(
        request_id=11,
        run_id=RUN,
        seq=1,
        digest=digest("load"),
        path="\0" * 60_000,
        with_optimizer=False,
    )
    (action,) = bench.say(header)
    assert isinstance(action, ToClient)
    assert action.header is not None
    failure = wire.decode(wire.encode(action.header))
    assert isinstance(failure, Failure)
    assert (failure.request_id, failure.code) == (11, "bad_request")


def test_answers_without_payload_are_bounded_too() -> None:
    bench = ready_bench(result_bytes=10_000)
    for number in range(100):
        bench.say(Void(request_id=100 + number, run_id=RUN, first_seq=1, last_seq=1 + number))
    (session,) = bench.core._books.sessions.by_id.values()
    assert len(session.kept) < 50
    assert told(bench.say(Resume(request_ids=[199]))) == [(0, ""), (199, "")]
