"""Forks of runs: order, lease, limits, and no trace of those that fail."""

import random
from typing import Any

import pytest
from core_bench import (
    OTHER,
    RUN,
    SESSION,
    CoreBench,
    create_run,
    dispatched,
    fork_run,
    forward_backward,
    optim_step,
    ready_bench,
    told,
)

from weft.client import wire
from weft.client.messages import (
    Cancel,
    CloseRun,
    Failure,
    ForkRun,
    Goodbye,
    Header,
    Query,
    Reply,
    Void,
)
from weft.client.worker_messages import Dispatch, Done, Failed, Withdraw
from weft.engine.broker.events import Action, StopRequested, ToClient, ToWorker, WorkerGone
from weft.engine.broker.leases import Phase

FORK = f"{SESSION}:train:1"


def withdrawn(actions: list[Action]) -> list[Withdraw]:
    return [
        action.header
        for action in actions
        if isinstance(action, ToWorker) and isinstance(action.header, Withdraw)
    ]


def describe(bench: CoreBench, run_id: str = FORK) -> dict[str, Any]:
    (action,) = bench.say(Query(request_id=999, what="run", subject=run_id))
    assert isinstance(action, ToClient)
    assert isinstance(action.header, Reply)
    return action.header.result


def test_a_fork_takes_effect_between_earlier_and_later_commands() -> None:
    bench = ready_bench()
    assert dispatched(bench.say(forward_backward(3))) == []
    assert dispatched(bench.say(fork_run(2))) == []
    assert dispatched(bench.say(forward_backward(1))) == [
        ("forward_backward", 1),
        ("fork_run", 2),
    ]
    actions = bench.finish(rank=4, base_model="tiny")
    assert told(actions) == [(12, "")]
    assert dispatched(actions) == [("forward_backward", 3)]


def test_the_new_run_goes_on_with_number_1_on_the_same_worker_under_its_own_lease() -> None:
    bench = ready_bench()
    bench.add_worker("w1", b"other")
    bench.say(fork_run(1))
    assert dispatched(bench.say(optim_step(1, run_id=FORK, request_id=50))) == []
    bench.finish(rank=4, base_model="tiny")
    dispatch, header = bench.dispatches[-1]
    assert (header.kind, dispatch.lease_epoch) == ("optim_step", 1)
    assert told(bench.finish()) == [(50, "")]


def test_a_fork_is_described_with_what_it_comes_from() -> None:
    bench = ready_bench()
    bench.say(fork_run(1, user_metadata={"arm": "3"}))
    bench.finish(rank=4, base_model="tiny", step=7)
    told_of = describe(bench)
    assert told_of["forked_from"] == RUN
    assert (told_of["state"], told_of["step"], told_of["rank"]) == ("open", 7, 4)
    assert told_of["user_metadata"] == {"arm": "3"}
    assert describe(bench, RUN)["forked_from"] == ""


def test_a_repeat_is_answered_from_memory_and_forks_nothing() -> None:
    bench = ready_bench()
    bench.say(fork_run(1))
    assert bench.say(fork_run(1)) == []
    bench.finish(rank=4, base_model="tiny")
    actions = bench.say(fork_run(1))
    assert (told(actions), dispatched(actions)) == ([(11, "")], [])


@pytest.mark.parametrize(
    ("new_run_id", "code"),
    [
        pytest.param(RUN, "conflict", id="itself"),
        pytest.param(f"{OTHER}:train:1", "bad_request", id="another session's"),
        pytest.param(f"{SESSION}:train:x", "bad_request", id="no number"),
    ],
)
def test_a_wrong_id_for_the_new_run_is_refused_and_uses_up_the_number(
    new_run_id: str, code: str
) -> None:
    bench = ready_bench()
    assert told(bench.say(fork_run(1, new_run_id))) == [(11, code)]
    assert dispatched(bench.say(optim_step(2))) == [("optim_step", 2)]


def test_the_id_of_a_fork_can_be_neither_created_nor_forked_again() -> None:
    bench = ready_bench()
    bench.say(fork_run(1))
    again = create_run(request_id=60, run_id=FORK)
    assert told(bench.say(again)) == [(60, "conflict")]
    bench.finish(rank=4, base_model="tiny")
    assert told(bench.say(again)) == [(60, "conflict")]
    assert told(bench.say(fork_run(2))) == [(12, "conflict")]


def test_a_foreign_run_cannot_be_forked() -> None:
    bench = CoreBench(tenant_of=lambda key: key)
    bench.hello(api_key="a")
    bench.add_worker()
    bench.open_run()
    bench.hello(OTHER, b"b", api_key="b")
    actions = bench.say(fork_run(1, f"{OTHER}:train:0"), peer=b"b")
    assert told(actions, b"b") == [(11, "not_found")]
    assert dispatched(bench.say(optim_step(1))) == [("optim_step", 1)]


@pytest.mark.parametrize("limit", [{"runs": 1}, {"tenant_runs": 1}, {"total_runs": 1}])
def test_a_session_with_all_its_runs_is_asked_to_come_back(limit: dict[str, int]) -> None:
    bench = ready_bench(**limit)
    (action,) = bench.say(fork_run(1))
    assert isinstance(action, ToClient)
    assert isinstance(action.header, Failure)
    assert (action.header.code, action.header.retry_after_s > 0) == ("busy", True)
    assert dispatched(bench.say(optim_step(2))) == []
    assert dispatched(bench.say(Void(request_id=90, run_id=RUN, first_seq=1, last_seq=1))) == [
        ("optim_step", 2)
    ]


def test_a_full_worker_gets_the_same_fork_again_and_what_follows_waits() -> None:
    bench = ready_bench()
    bench.say(fork_run(1))
    bench.say(optim_step(2))
    actions = bench.fail("busy")
    assert (told(actions), dispatched(actions)) == ([(11, "busy")], [])
    assert dispatched(bench.say(fork_run(1))) == [("fork_run", 1)]
    assert dispatched(bench.finish(rank=4, base_model="tiny")) == [("optim_step", 2)]
    assert describe(bench)["state"] == "open"


def test_commands_that_came_early_for_a_fork_without_room_fail() -> None:
    bench = ready_bench()
    bench.say(fork_run(1))
    bench.say(optim_step(1, run_id=FORK, request_id=50))
    bench.say(fork_run(2, f"{SESSION}:train:2", run_id=FORK, request_id=51))
    assert sorted(told(bench.fail("busy"))) == [
        (11, "busy"),
        (50, "not_found"),
        (51, "not_found"),
    ]


def test_a_full_worker_first_gives_up_runs_that_no_session_keeps() -> None:
    bench = ready_bench()
    bench.hello(OTHER, b"other")
    expired = bench.open_run(OTHER, b"other")
    bench.say(Goodbye(), peer=b"other")
    bench.say(fork_run(1))
    actions = bench.fail("busy")
    assert [header.run_ids for header in withdrawn(actions)] == [[expired]]
    assert dispatched(actions) == [("fork_run", 1)]
    assert told(bench.finish(rank=4, base_model="tiny")) == [(11, "")]


def test_a_fork_that_fails_leaves_no_run_and_blocks_nothing() -> None:
    bench = ready_bench()
    bench.say(fork_run(1))
    bench.say(optim_step(2))
    bench.say(optim_step(1, run_id=FORK, request_id=50))
    actions = bench.fail("non_finite")
    assert told(actions) == [(11, "non_finite"), (50, "not_found")]
    assert dispatched(actions) == [("optim_step", 2)]
    assert describe(bench)["state"] == "closed"


def test_closing_the_source_withdraws_a_fork_that_may_have_been_made() -> None:
    bench = ready_bench()
    bench.say(fork_run(1))
    dispatch_id = bench.dispatches[-1][0].dispatch_id
    actions = bench.say(CloseRun(request_id=90, run_id=RUN))
    assert withdrawn(actions) == [Withdraw(dispatch_ids=[dispatch_id], run_ids=[RUN, FORK])]
    assert sorted(told(actions)) == [(11, "cancelled"), (90, "")]
    assert describe(bench)["state"] == "closed"


def test_a_fork_that_was_closed_before_it_was_there_is_withdrawn() -> None:
    bench = ready_bench()
    bench.say(fork_run(1))
    bench.say(CloseRun(request_id=90, run_id=FORK))
    actions = bench.finish(rank=4, base_model="tiny")
    assert [header.run_ids for header in withdrawn(actions)] == [[FORK]]
    assert describe(bench)["state"] == "closed"


def test_a_lost_worker_takes_source_and_fork_with_it() -> None:
    bench = ready_bench()
    bench.say(fork_run(1))
    bench.finish(rank=4, base_model="tiny")
    bench.say(fork_run(2, f"{SESSION}:train:2"))
    assert told(bench.handle(WorkerGone("w0", "it died"))) == [(12, "run_lost")]
    assert [describe(bench, f"{SESSION}:train:{n}")["state"] for n in range(3)] == [
        "lost",
        "lost",
        "closed",
    ]


def test_a_fork_under_way_outlives_its_session_and_stays_the_tenants() -> None:
    bench = ready_bench()
    bench.hello(OTHER, b"other")
    bench.say(fork_run(1))
    bench.say(Goodbye())
    bench.finish(rank=4, base_model="tiny")
    step = optim_step(1, run_id=FORK)
    assert dispatched(bench.say(step, peer=b"other")) == [("optim_step", 1)]
    assert told(bench.finish(), b"other") == [(11, "")]


def test_a_fork_that_waits_goes_with_its_session() -> None:
    bench = ready_bench()
    bench.hello(OTHER, b"other")
    bench.say(fork_run(2))
    bench.say(Goodbye())
    step = optim_step(1, run_id=FORK)
    assert told(bench.say(step, peer=b"other"), b"other") == [(11, "not_found")]
    # number 2 is used up with the session
    assert dispatched(bench.say(optim_step(3), peer=b"other")) == [("optim_step", 3)]


def test_a_queued_fork_can_be_cancelled_and_uses_up_its_number() -> None:
    bench = ready_bench()
    bench.say(fork_run(2))
    actions = bench.say(Cancel(request_id=90, target_id=12))
    assert sorted(told(actions)) == [(12, "cancelled"), (90, "")]
    assert dispatched(bench.say(forward_backward(1))) == [("forward_backward", 1)]
    assert dispatched(bench.say(optim_step(3))) == [("optim_step", 3)]


def test_a_stopping_broker_refuses_forks() -> None:
    bench = ready_bench()
    bench.say(fork_run(2))
    assert told(bench.handle(StopRequested())) == [(12, "stopping")]


class ModelWorker:
    """Runs as a set of ids, and messages that are on their way in both directions."""

    def __init__(self, bench: CoreBench, room: int) -> None:
        self.bench = bench
        self.room = room
        self.runs: set[str] = set()
        self.inbox: list[tuple[Header, Any]] = []
        self.queue: list[tuple[Dispatch, Any]] = []
        self.outbox: list[tuple[Header, bytes]] = []

    def take(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, ToWorker):
                request = wire.decode(action.frames[0]) if action.frames else None  # type: ignore[arg-type]
                self.inbox.append((action.header, request))

    def read(self) -> None:
        header, request = self.inbox.pop(0)
        if isinstance(header, Dispatch):
            self.queue.append((header, request))
        elif isinstance(header, Withdraw):
            gone = [one for one in self.queue if one[0].dispatch_id in header.dispatch_ids]
            gone += [one for one in self.queue if one[1].run_id in header.run_ids]
            self.queue = [one for one in self.queue if one not in gone]
            self.runs -= set(header.run_ids)

    def compute(self) -> None:
        dispatch, request = self.queue.pop(0)
        made = {"create_run": request.run_id, "fork_run": getattr(request, "new_run_id", "")}
        new = made.get(request.kind, "")
        code = ""
        if request.kind != "create_run" and request.run_id not in self.runs:
            code = "not_found"
        elif new and len(self.runs) >= self.room:
            code = "busy"
        elif new:
            assert new not in self.runs
            self.runs.add(new)
        common: dict[str, Any] = {
            "dispatch_id": dispatch.dispatch_id,
            "lease_epoch": dispatch.lease_epoch,
        }
        reply = wire.encode(Reply(request_id=request.request_id, result={"base_model": "tiny"}))
        self.outbox.append(
            (Failed(code=code, detail="", **common), b"") if code else (Done(**common), reply)
        )


class Play:
    """One client that forks, steps, cancels and closes at random, and comes back when busy."""

    def __init__(self, source: random.Random) -> None:
        self.source = source
        self.bench = CoreBench(runs=1000)
        self.worker = ModelWorker(self.bench, room=5)
        self.next_seq = {RUN: 1}
        self.sent: dict[int, Header] = {}
        self.answered: dict[int, str] = {}
        self.again: list[int] = []
        self.bench.hello()
        self.take(self.bench.add_worker())
        self.say(create_run(request_id=1))

    def say(self, header: Any) -> None:
        self.sent[header.request_id] = header
        self.take(self.bench.say(header))

    def take(self, actions: list[Action]) -> None:
        self.worker.take(actions)
        for action in actions:
            if not isinstance(action, ToClient):
                continue
            header: Any = action.header or wire.decode(action.frames[0])  # type: ignore[arg-type]
            if getattr(header, "retry_after_s", 0) > 0:
                self.again.append(header.request_id)
            elif isinstance(header, Reply | Failure):
                assert header.request_id not in self.answered
                self.answered[header.request_id] = getattr(header, "code", "")
                request = self.sent[header.request_id]
                if isinstance(request, ForkRun) and isinstance(header, Reply):
                    self.next_seq[request.new_run_id] = 1

    def act(self) -> None:
        number = len(self.sent) + 1
        run_id = self.source.choice(list(self.next_seq))
        kind = self.source.choice(["fork"] * 4 + ["step"] * 4 + ["close", "cancel", "gap"])
        if kind in ("fork", "step", "gap"):
            seq = self.next_seq[run_id]
            self.next_seq[run_id] += 1
            common: dict[str, Any] = {"request_id": number, "run_id": run_id}
            if kind == "fork":
                self.say(fork_run(seq, f"{SESSION}:train:{number}", **common))
            elif kind == "step":
                self.say(optim_step(seq, **common))
            else:
                self.say(Void(first_seq=seq, last_seq=seq, **common))
        elif kind == "close" and len(self.next_seq) > 3:
            self.say(CloseRun(request_id=number, run_id=run_id))
            del self.next_seq[run_id]
        elif kind == "cancel":
            self.say(Cancel(request_id=number, target_id=self.source.randint(1, number)))

    def advance(self) -> bool:
        """Let one message that is on its way arrive, or the worker compute; whether any was."""
        worker = self.worker
        ways = [way for way in (worker.inbox, worker.queue, worker.outbox, self.again) if way]
        if not ways:
            return False
        way = self.source.choice(ways)
        if way is worker.inbox:
            worker.read()
        elif way is worker.queue:
            worker.compute()
        elif way is worker.outbox:
            header, reply = worker.outbox.pop(0)
            self.take(self.bench.work(header, *([reply] if reply else [])))
        else:
            self.take(self.bench.say(self.sent[self.again.pop(0)]))
        return True


@pytest.mark.parametrize("seed", range(12))
def test_in_any_order_of_events_no_fork_leaks_and_no_run_is_wedged(seed: int) -> None:
    play = Play(random.Random(seed))
    for _ in range(200):
        play.act()
        for _ in range(play.source.randrange(4)):
            play.advance()
    play.worker.room = 1000
    while play.advance():
        pass
    assert set(play.answered) == set(play.sent)
    runs = play.bench.core._books.runs.values()
    held = {run.run_id for run in runs if run.phase is Phase.OPEN}
    assert play.worker.runs == held
    assert [run.run_id for run in runs if run.phase is Phase.OPENING] == []
    for run_id in held & set(play.next_seq):
        number = len(play.sent) + 1
        play.say(optim_step(play.next_seq[run_id], request_id=number, run_id=run_id))
        while play.advance():
            pass
        assert play.answered[number] == ""
