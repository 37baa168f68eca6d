"""Placement, fairness under credit, lease epochs, and the loss of workers."""

from dataclasses import replace
from typing import Any

from core_bench import (
    CARD,
    CLIENT,
    OTHER,
    RUN,
    SAMPLER,
    SESSION,
    WORKER,
    CoreBench,
    checkpoint,
    create_run,
    create_sampler,
    dispatched,
    forward_backward,
    optim_step,
    ready_bench,
    sample,
    save_for_sampler,
    told,
)

from weft.client import wire
from weft.client.limits import limit
from weft.client.messages import CloseRun, Failure, Goodbye, Reply
from weft.client.worker_messages import Dispatch, Done, Failed, Withdraw, WorkerHello, WorkerReady
from weft.engine.broker.events import (
    Action,
    CatalogLoaded,
    ClientMessage,
    ToClient,
    ToWorker,
    WorkerGone,
    WorkerLost,
    WorkerUnreachable,
)

SECOND = b"second worker"


def peers(actions: list[Action]) -> list[bytes]:
    """The workers that something was dispatched to."""
    return [
        action.peer
        for action in actions
        if isinstance(action, ToWorker) and isinstance(action.header, Dispatch)
    ]


def run_of(number: int) -> Any:
    return create_run(request_id=100 + number, run_id=f"{SESSION}:train:{number}")


# Placement.


def test_work_waits_while_no_worker_is_ready() -> None:
    bench = CoreBench()
    bench.hello()
    assert bench.say(create_run()) == []
    hello = WorkerHello(versions=[1], worker_id="w0", secret="", pid=1)
    assert bench.work(hello) == []
    ready = WorkerReady(model=CARD, train_credit=10, sample_credit=10)
    assert dispatched(bench.work(ready)) == [("create_run", 0)]


def test_a_model_goes_by_its_name_and_its_aliases() -> None:
    bench = CoreBench()
    bench.hello()
    bench.add_worker()
    assert dispatched(bench.say(create_run(base_model="org/tiny"))) == [("create_run", 0)]


def test_an_unknown_model_is_refused_with_what_is_served() -> None:
    bench = CoreBench()
    bench.hello()
    bench.add_worker()
    (action,) = bench.say(create_run(base_model="llama"))
    assert action.header.code == "not_found"  # type: ignore[union-attr]
    assert action.header.detail == "no model 'llama'; served: 'tiny'"  # type: ignore[union-attr]
    assert told(bench.say(optim_step(1))) == [(11, "not_found")]


def test_an_unknown_model_waits_for_a_worker_that_still_loads() -> None:
    bench = CoreBench()
    bench.hello()
    bench.add_worker()
    hello = WorkerHello(versions=[1], worker_id="w1", secret="", pid=1)
    bench.work(hello, peer=SECOND)
    assert bench.say(create_run(base_model="llama")) == []
    ready = WorkerReady(model=replace(CARD, name="llama"), train_credit=1, sample_credit=1)
    assert peers(bench.work(ready, peer=SECOND)) == [SECOND]


def test_the_model_that_a_run_names_beside_a_state_is_looked_at_once_one_is_loaded() -> None:
    bench = CoreBench()
    bench.hello()
    bench.handle(CatalogLoaded((checkpoint("a"),)))
    for number, name in enumerate(("other", "org/tiny", "")):
        run = replace(run_of(number), from_path=f"weft://{RUN}/weights/a", base_model=name)
        assert told(bench.say(run)) == []
    actions = bench.add_worker()
    assert told(actions) == [(100, "bad_request")]
    assert peers(actions) == [WORKER, WORKER]


def test_runs_go_to_the_worker_that_holds_fewest() -> None:
    bench = CoreBench()
    bench.hello()
    bench.add_worker()
    bench.add_worker("w1", SECOND)
    placed = [peers(bench.say(run_of(number)))[0] for number in range(4)]
    assert sorted(placed) == [SECOND, SECOND, WORKER, WORKER]


def test_a_dispatch_tells_how_long_its_request_waited_at_the_broker() -> None:
    bench = CoreBench()
    bench.hello()
    bench.add_worker(train_credit=1)
    bench.open_run()
    bench.say(optim_step(2))
    bench.now += 2.0  # the number before it is missing
    bench.say(optim_step(1))
    bench.now += 3.0  # the worker has no credit for a second one
    bench.finish()
    assert [dispatch.queued_s for dispatch, _ in bench.dispatches[1:]] == [0.0, 5.0]


def test_a_run_stays_with_its_worker() -> None:
    bench = ready_bench()
    bench.add_worker("w1", SECOND)
    assert peers(bench.say(optim_step(1))) == [WORKER]


def test_a_full_worker_gives_the_number_of_a_run_back() -> None:
    bench = CoreBench()
    bench.hello()
    bench.add_worker()
    bench.say(create_run())
    (action,) = bench.fail("busy")
    assert (action.header.code, action.header.retry_after_s) == ("busy", 0.25)  # type: ignore[union-attr]
    again = bench.say(create_run())
    assert dispatched(again) == [("create_run", 0)]
    assert bench.dispatches[-1][0].lease_epoch == 2
    assert told(bench.finish()) == [(1, "")]


def test_busy_from_a_worker_is_final_for_an_ordered_command() -> None:
    bench = ready_bench()
    bench.say(save_for_sampler(1))
    (action,) = bench.fail("busy")
    assert (action.header.code, action.header.retry_after_s) == ("busy", 0.0)  # type: ignore[union-attr]
    assert dispatched(bench.say(optim_step(2))) == [("optim_step", 2)]


def test_a_sample_that_meets_a_full_worker_may_come_again() -> None:
    bench = ready_bench()
    bench.say(create_sampler(2))
    bench.finish()
    bench.say(sample(5))
    assert told(bench.fail("busy")) == [(5, "busy")]
    assert dispatched(bench.say(sample(5))) == [("sample", 5)]


def test_a_full_worker_first_drops_a_run_that_no_session_keeps() -> None:
    bench = ready_bench()
    bench.say(Goodbye())
    bench.hello(OTHER)
    bench.say(create_run(run_id=f"{OTHER}:train:0"))
    actions = bench.fail("busy")
    assert actions[0] == ToWorker(WORKER, Withdraw(run_ids=[RUN]))
    assert dispatched(actions) == [("create_run", 0)]
    assert told(bench.say(optim_step(1))) == [(11, "run_lost")]


def test_runs_without_a_session_are_kept_up_to_a_limit() -> None:
    bench = CoreBench(expired_runs=1)
    bench.add_worker()
    for letter in "abc":
        bench.hello(letter * 32)
        bench.open_run(letter * 32)
        actions = bench.say(Goodbye())
    assert actions == [ToWorker(WORKER, Withdraw(run_ids=[f"{'b' * 32}:train:0"]))]


# Fairness and credit.


def test_credit_bounds_what_is_dispatched() -> None:
    weight = limit("backward_weight") * 8 + 1
    bench = CoreBench()
    bench.hello()
    bench.add_worker(train_credit=2 * weight)
    bench.open_run()
    sent = [dispatched(bench.say(forward_backward(seq))) for seq in (1, 2, 3)]
    assert sent == [[("forward_backward", 1)], [("forward_backward", 2)], []]
    assert dispatched(bench.finish()) == [("forward_backward", 3)]


def test_a_command_beyond_the_whole_credit_goes_alone() -> None:
    bench = CoreBench()
    bench.hello()
    bench.add_worker(train_credit=10)
    bench.open_run()
    assert dispatched(bench.say(forward_backward(1, num_tokens=1000))) != []
    assert bench.say(forward_backward(2)) == []


def test_samples_never_wait_for_training_credit() -> None:
    bench = CoreBench()
    bench.hello()
    bench.add_worker(train_credit=1, sample_credit=1)
    bench.open_run()
    bench.say(create_sampler(2))
    bench.finish()
    bench.say(optim_step(1))
    assert bench.say(optim_step(2)) == []
    assert dispatched(bench.say(sample(5))) == [("sample", 5)]


def test_sessions_take_turns_when_credit_is_short() -> None:
    bench = CoreBench(quantum=1)
    bench.add_worker(train_credit=1)
    for letter in "ab":
        bench.hello(letter * 32, letter.encode())
        bench.open_run(letter * 32, letter.encode())
    for letter in "ab":
        for seq in (1, 2, 3):
            header = optim_step(seq, run_id=f"{letter * 32}:train:0")
            bench.say(header, peer=letter.encode())
    while len(bench.dispatches) < 8:
        bench.finish()
    order = [request.run_id[0] for _, request in bench.dispatches[2:]]  # type: ignore[attr-defined]
    assert order == ["a", *"ababb"]  # the first one went before the other session had work


def test_a_client_that_declares_few_tokens_pays_for_its_bytes() -> None:
    bench = CoreBench()
    bench.hello()
    bench.add_worker(train_credit=5000)
    bench.open_run()
    bench.say(forward_backward(1, num_tokens=1), bytes(100_000))
    assert bench.say(forward_backward(2, num_tokens=1), bytes(100_000)) == []


# Leases.


def test_an_answer_under_an_older_epoch_is_dropped() -> None:
    bench = ready_bench()
    bench.say(optim_step(1))
    reply = wire.encode(Reply(request_id=11))
    assert bench.work(Done(dispatch_id=2, lease_epoch=0), reply) == []
    failed = Failed(dispatch_id=2, lease_epoch=0, code="internal", detail="")
    assert bench.work(failed) == []
    assert told(bench.finish()) == [(11, "")]


def test_an_answer_from_a_worker_that_was_not_asked_is_dropped() -> None:
    bench = ready_bench()
    bench.add_worker("w1", SECOND)
    bench.say(optim_step(1))
    assert bench.finish(peer=SECOND) == []
    assert told(bench.finish()) == [(11, "")]


def test_a_second_answer_is_dropped() -> None:
    bench = ready_bench()
    bench.say(optim_step(1))
    bench.finish()
    assert bench.finish() == []
    assert bench.fail("internal") == []


def test_an_answer_in_parts_is_passed_on_whole_and_in_order() -> None:
    bench = ready_bench()
    bench.say(forward_backward(1))
    parts = [wire.encode(Reply(request_id=11, part=part, num_parts=2)) for part in (0, 1)]
    assert bench.work(Done(dispatch_id=2, lease_epoch=1, part=1, num_parts=2), parts[1]) == []
    actions = bench.work(Done(dispatch_id=2, lease_epoch=1, num_parts=2), parts[0])
    assert [action.frames for action in actions] == [(parts[0],), (parts[1],)]  # type: ignore[union-attr]


def test_an_answer_with_wrong_parts_fails_the_command() -> None:
    bench = ready_bench()
    bench.say(forward_backward(1))
    reply = wire.encode(Reply(request_id=11))
    bad = Done(dispatch_id=2, lease_epoch=1, part=5, num_parts=2)
    assert told(bench.work(bad, reply)) == [(11, "internal")]


# Lost workers.


def test_the_runs_of_a_lost_worker_are_lost() -> None:
    bench = ready_bench()
    bench.say(optim_step(1))
    bench.say(optim_step(3))
    actions = bench.handle(WorkerGone("w0", "exit status 9"))
    assert told(actions) == [(11, "run_lost"), (13, "run_lost")]
    assert WorkerLost("w0", "exit status 9") in actions
    details = [action.header.detail for action in actions if isinstance(action, ToClient)]  # type: ignore[union-attr]
    assert details == ["worker w0 is gone: exit status 9"] * 2
    assert told(bench.say(optim_step(4))) == [(14, "run_lost")]


def test_a_finished_answer_survives_its_worker() -> None:
    bench = ready_bench()
    bench.say(optim_step(1))
    first = bench.finish()
    bench.handle(WorkerGone("w0", "exit status 9"))
    assert bench.say(optim_step(1)) == first


def test_a_run_that_is_being_created_goes_elsewhere() -> None:
    bench = CoreBench()
    bench.hello()
    bench.add_worker()
    bench.say(create_run())
    bench.add_worker("w1", SECOND)
    actions = bench.handle(WorkerUnreachable(WORKER))
    assert peers(actions) == [SECOND]
    assert bench.dispatches[-1][0].lease_epoch == 2
    assert told(bench.finish(peer=SECOND)) == [(1, "")]


def test_samples_of_a_base_model_go_to_another_worker() -> None:
    bench = ready_bench()
    bench.say(create_sampler(2))
    bench.finish(base_model="tiny")
    bench.say(sample(5))
    bench.add_worker("w1", SECOND)
    actions = bench.handle(WorkerGone("w0", "it died"))
    assert (dispatched(actions), peers(actions)) == ([("create_sampler", 2)], [SECOND])
    assert dispatched(bench.finish(peer=SECOND, base_model="tiny")) == [("sample", 5)]
    assert told(bench.finish(peer=SECOND)) == [(5, "")]


def test_samples_of_a_base_model_wait_when_no_other_worker_is_there() -> None:
    bench = ready_bench()
    bench.say(create_sampler(2))
    bench.finish(base_model="tiny")
    bench.say(sample(5))
    assert told(bench.handle(WorkerGone("w0", "it died"))) == []
    assert dispatched(bench.add_worker("w1", SECOND)) == [("create_sampler", 2)]
    assert dispatched(bench.finish(peer=SECOND)) == [("sample", 5)]


def test_a_sampler_of_live_weights_is_lost_with_its_worker() -> None:
    bench = ready_bench()
    bench.say(save_for_sampler(1))
    bench.finish()
    bench.say(sample(5))
    bench.add_worker("w1", SECOND)
    assert told(bench.handle(WorkerGone("w0", "it died"))) == [(5, "run_lost")]
    assert told(bench.say(sample(6))) == [(6, "run_lost")]


def test_a_reopened_sampler_that_fails_fails_its_samples() -> None:
    bench = ready_bench()
    bench.say(create_sampler(2))
    bench.finish(base_model="tiny")
    bench.say(sample(5))
    bench.add_worker("w1", SECOND)
    bench.handle(WorkerGone("w0", "it died"))
    assert told(bench.fail("out_of_memory", peer=SECOND)) == [(5, "out_of_memory")]


def test_a_sampler_whose_checkpoint_was_saved_anew_is_lost_with_its_worker() -> None:
    bench = ready_bench()
    bench.handle(CatalogLoaded((checkpoint("a"), checkpoint("b"))))
    for number, name in enumerate("ab"):
        path, sampler_id = f"weft://{RUN}/weights/{name}", f"{SESSION}:sample:{number}"
        bench.say(create_sampler(number + 2, sampler_id=sampler_id, model_path=path))
        bench.finish(base_model="tiny")
    anew = (checkpoint("a", created=2.0), checkpoint("b", expires=9e9))
    bench.handle(CatalogLoaded(anew))
    bench.handle(WorkerGone("w0", "it died"))
    asked = [sample(5 + n, sampler_id=f"{SESSION}:sample:{n}") for n in (0, 1)]
    (refused,) = bench.say(asked[0])
    assert isinstance(refused, ToClient)
    assert isinstance(refused.header, Failure)
    assert refused.header.code == "run_lost"
    assert "weights/a was saved anew since it was opened" in refused.header.detail
    assert bench.say(asked[1]) == []  # it waits for a worker


def test_two_lost_workers_in_turn_lose_no_sample() -> None:
    bench = ready_bench()
    bench.say(create_sampler(2))
    bench.finish(base_model="tiny")
    bench.say(sample(5))
    bench.add_worker("w1", SECOND)
    bench.handle(WorkerGone("w0", "it died"))
    bench.handle(WorkerGone("w1", "it died"))
    bench.add_worker("w2", b"third")
    bench.finish(peer=b"third", base_model="tiny")
    assert told(bench.finish(peer=b"third")) == [(5, "")]


def test_a_session_that_ends_withdraws_its_samples_and_samplers() -> None:
    bench = ready_bench()
    bench.say(create_sampler(2))
    bench.finish()
    bench.say(sample(5))
    actions = bench.say(Goodbye())
    assert told(actions) == [(5, "cancelled")]
    assert ToWorker(WORKER, Withdraw(dispatch_ids=[3])) in actions
    assert ToWorker(WORKER, Withdraw(sampler_ids=[SAMPLER])) in actions


def test_a_worker_that_connects_anew_holds_nothing() -> None:
    bench = ready_bench()
    bench.say(optim_step(1))
    hello = WorkerHello(versions=[1], worker_id="w0", secret="", pid=2)
    assert told(bench.work(hello, peer=SECOND), CLIENT) == [(11, "run_lost")]


def test_a_run_with_more_commands_than_a_header_holds_is_withdrawn_in_pieces() -> None:
    bench = ready_bench()
    number = limit("request_ids") + 3
    for seq in range(1, number + 1):  # past the bench, which would look through the books each time
        header = forward_backward(seq, num_tokens=1, forward_only=True)
        bench.core.handle(ClientMessage(CLIENT, header, (wire.encode(header),)), bench.now)
    actions = bench.say(CloseRun(request_id=9, run_id=RUN))
    headers = [action.header for action in actions if isinstance(action, ToWorker)]
    withdrawn = [header for header in headers if isinstance(header, Withdraw)]
    assert [len(header.dispatch_ids) for header in withdrawn] == [limit("request_ids"), 3]
    assert [header.run_ids for header in withdrawn] == [[], [RUN]]
