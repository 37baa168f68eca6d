"""What holds after any sequence of events."""

import random
from typing import Any

import pytest
from core_bench import (
    OTHER,
    SESSION,
    CoreBench,
    create_run,
    create_sampler,
    fork_run,
    forward_backward,
    optim_step,
    ready_bench,
    sample,
    save_for_sampler,
    save_state,
    told,
)

from weft.client.messages import (
    Ack,
    Cancel,
    CloseRun,
    CloseSampler,
    Goodbye,
    Header,
    Heartbeat,
    LoadState,
    Query,
    Resume,
    Void,
    Watch,
)
from weft.client.worker_messages import Done
from weft.engine.broker.events import (
    ClientGone,
    Finished,
    StopRequested,
    Tick,
    WorkerGone,
    WorkerUnreachable,
)


def random_message(source: random.Random, session: str) -> Header:
    """Something a client might send: right, repeated, early, foreign or absurd."""
    run = f"{session}:train:{source.randrange(3)}"
    sampler = f"{session}:sample:{source.randrange(3)}"
    seq, number = source.randrange(12), source.randrange(1, 60)
    common: dict[str, Any] = {"run_id": run, "request_id": number}
    messages: list[Header] = [
        create_run(request_id=number, run_id=run, base_model=source.choice(["tiny", "no"])),
        forward_backward(seq, **common, loss_fn=source.choice(["cross_entropy"] * 4 + ["no"])),
        forward_backward(
            seq, part=source.randrange(3), num_parts=source.choice([2, 2, 3]), **common
        ),
        optim_step(seq, **common),
        fork_run(seq, f"{session}:train:{source.randrange(3)}", **common),
        fork_run(seq, f"{session}:train:{source.randrange(3)}", **common),
        save_state(seq, **common, overwrite=source.random() < 0.5),
        save_for_sampler(seq, **common, sampler_id=sampler),
        LoadState(
            seq=seq,
            digest=b"load".ljust(16),
            path=f"weft://{run}/weights/state",
            with_optimizer=True,
            **common,
        ),
        create_sampler(number, sampler_id=sampler),
        sample(number, sampler_id=sampler, digest=b"s".ljust(16)),
        sample(number, sampler_id=sampler),
        Void(first_seq=seq, last_seq=seq + source.randrange(3), **common),
        Cancel(request_id=number, target_id=source.randrange(1, 60)),
        Query(request_id=number, what=source.choice(["runs", "status", "checkpoints"])),
        Watch(request_id=number, enabled=source.random() < 0.5),
        Ack(request_ids=[source.randrange(1, 60) for _ in range(5)]),
        Resume(request_ids=list(range(1, 60))),
        CloseSampler(request_id=number, sampler_id=sampler),
        source.choice([Heartbeat(), Goodbye(), CloseRun(**common)]),
    ]
    return source.choice(messages)


@pytest.mark.parametrize("seed", range(8))
def test_the_books_agree_after_any_sequence_of_events(seed: int) -> None:
    source = random.Random(seed)
    bench = CoreBench(
        persists=True,
        lane_requests=12,
        lane_bytes=4000,
        total_bytes=5000,
        held_commands=4,
        runs=2,
        samplers=2,
        result_bytes=6000,
        total_result_bytes=8000,
        result_ttl_s=20,
        session_ttl_s=60,
        expired_runs=1,
        total_runs=3,
        void_ranges=2,
    )
    sessions = [SESSION, OTHER]
    workers = [("w0", b"w0"), ("w1", b"w1")]
    for _ in range(1500):
        session = source.choice(sessions)
        peer = session[:1].encode()
        chance = source.random()
        if chance < 0.08:
            bench.hello(session, peer)
        elif chance < 0.66:
            payload = bytes(source.choice([0, 10, 900]))
            bench.say(random_message(source, session), payload, peer=peer)
        elif chance < 0.90 and bench.dispatches:
            index = source.randrange(max(0, len(bench.dispatches) - 6), len(bench.dispatches))
            _, worker = source.choice(workers)
            if source.random() < 0.8:
                bench.finish(index, worker, base_model="tiny")
            else:
                bench.fail(source.choice(["busy", "non_finite"]), index, worker)
        elif chance < 0.94:
            name, worker = source.choice(workers)
            bench.add_worker(name, worker, train_credit=200, sample_credit=100)
        elif chance < 0.96:
            name, worker = source.choice(workers)
            is_told = source.random() < 0.5
            bench.handle(WorkerGone(name, "it died") if is_told else WorkerUnreachable(worker))
        elif chance < 0.97:
            bench.handle(ClientGone(peer))
        else:
            bench.now += source.choice([1.0, 1.0, 9.0, 25.0])
            bench.handle(Tick())
    bench.handle(StopRequested())
    bench.now += 60
    assert bench.core.is_finished or Finished() in bench.handle(Tick())


@pytest.mark.parametrize("seed", range(4))
def test_every_number_of_a_run_is_answered_once_in_any_order_of_arrival(seed: int) -> None:
    source = random.Random(seed)
    bench = ready_bench()
    commands = [
        forward_backward(seq, part=part, num_parts=2) for seq in range(1, 30) for part in (0, 1)
    ]
    commands += [optim_step(seq) for seq in range(30, 60)]
    source.shuffle(commands)
    for header in commands:
        bench.say(header)
    order = [request.seq for _, request in bench.dispatches[1:]]  # type: ignore[attr-defined]
    assert order == sorted(order)
    answers = []
    seen: set[int] = set()
    for index, (dispatch, _) in enumerate(bench.dispatches):
        if dispatch.dispatch_id not in seen and dispatch.dispatch_id > 1:
            answers += told(
                bench.finish(index) if source.random() < 0.8 else bench.fail("internal", index)
            )
            seen.add(dispatch.dispatch_id)
    assert [number for number, _ in answers] == [10 + seq for seq in range(1, 60)]


def test_done_for_an_unknown_dispatch_is_dropped() -> None:
    bench = ready_bench()
    assert bench.work(Done(dispatch_id=999, lease_epoch=1)) == []
    bench.core.check_integrity()
