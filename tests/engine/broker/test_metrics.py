"""What a broker counts: requests by outcome, their times, and the work of workers, gone or not."""

from typing import Any

import pytest
from core_bench import (
    CLIENT,
    RUN,
    SESSION,
    CoreBench,
    create_sampler,
    forward_backward,
    optim_step,
    ready_bench,
    sample,
)

from weft.client.file_messages import CloseTransfer
from weft.client.messages import CloseRun, Hello, Query, Reply, Void
from weft.client.worker_messages import WorkerCounters
from weft.engine.broker.events import MalformedMessage, WorkerGone
from weft.engine.broker.metrics import Metrics, WorkTotals
from weft.engine.histogram import SECONDS


def metrics(bench: CoreBench) -> dict[str, Any]:
    """What the broker tells of its own counts."""
    return bench.core._books.metrics.to_fields()


def requests(bench: CoreBench) -> dict[tuple[str, str], int]:
    told = metrics(bench)["requests"]
    return {(kind, code): n for kind, codes in told.items() for code, n in codes.items() if n}


def done_so_far(steps: int, tokens: int = 0, pages: int = 0) -> WorkerCounters:
    return WorkerCounters(
        steps={"train": steps},
        failures={"train": 0},
        busy_s={"train": steps / 4},
        tokens={"trained": tokens},
        tenants={"train": [steps, 0]},
        tenants_sum={"train": steps},
        used={"kv_pages": pages},
        total={"kv_pages": 64},
    )


def test_a_request_is_counted_once_by_kind_and_outcome() -> None:
    bench = ready_bench()
    bench.say(forward_backward(1))
    bench.finish()
    bench.say(forward_backward(1))  # a repeat is answered from memory
    bench.say(optim_step(2))
    bench.fail("no_gradients")
    assert requests(bench) == {
        ("create_run", "ok"): 1,
        ("forward_backward", "ok"): 1,
        ("optim_step", "no_gradients"): 1,
    }


def test_a_call_in_parts_is_one_request() -> None:
    bench = ready_bench()
    for part in range(3):
        bench.say(forward_backward(1, part=part, num_parts=3))
    bench.finish()
    assert requests(bench)["forward_backward", "ok"] == 1


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (Query(request_id=9, what="status"), ("query", "ok")),
        (Query(request_id=9, what="secrets"), ("query", "bad_request")),
        (CloseRun(request_id=9, run_id=RUN), ("close_run", "ok")),
        (CloseTransfer(request_id=9, transfer_id=1), ("close_transfer", "ok")),
        (sample(9, sampler_id=f"{SESSION}:sample:7"), ("sample", "not_found")),
    ],
    ids=lambda value: str(value[1]) if isinstance(value, tuple) else value.kind,
)
def test_what_is_answered_at_once_is_counted_too(header: Any, expected: tuple[str, str]) -> None:
    bench = ready_bench()
    bench.say(header)
    assert requests(bench) == {("create_run", "ok"): 1, expected: 1}


def test_a_request_that_is_to_come_back_is_counted_each_time() -> None:
    bench = one_at_a_time(lane_requests=1)
    bench.say(create_sampler(2))
    bench.finish()
    for number in (10, 11, 12):  # one is dispatched, one waits, one finds the door full
        bench.say(sample(number))
    assert requests(bench)["sample", "busy"] == 1
    bench.fail("busy")  # and one comes back from the worker
    assert requests(bench)["sample", "busy"] == 2


def test_a_message_that_is_nobodys_request_is_counted_as_refused() -> None:
    bench = CoreBench(tenant_of=lambda key: "local" if key == "right" else None)
    bench.say(Hello(versions=[1], session_id=SESSION, api_key="wrong"))
    bench.say(Query(request_id=1, what="status"))
    bench.handle(MalformedMessage(CLIENT, "malformed", "not a message"))
    assert metrics(bench)["refused"] == {"unauthorized": 1, "unknown_session": 1, "malformed": 1}
    assert requests(bench) == {}


def test_times_run_from_the_arrival_to_dispatch_and_to_the_answer() -> None:
    bench = one_at_a_time()
    bench.say(optim_step(1))
    bench.say(forward_backward(2))  # waits until the step is done
    bench.now += 2.0
    bench.finish()
    bench.now += 1.0
    bench.finish()
    told = metrics(bench)
    assert (ends(told["queue_s"]["optim_step"]), ends(told["latency_s"]["optim_step"])) == (
        [SECONDS[0]],
        [2.5],
    )
    assert told["queue_s"]["forward_backward"]["sum"] == 2.0
    assert told["latency_s"]["forward_backward"]["sum"] == 3.0


def test_a_command_that_never_was_whole_has_no_time() -> None:
    bench = ready_bench()
    bench.say(forward_backward(1, part=0, num_parts=2))
    bench.say(Void(request_id=50, run_id=RUN, first_seq=1, last_seq=1))
    assert requests(bench)["forward_backward", "cancelled"] == 1
    assert set(metrics(bench)["latency_s"]) == {"create_run"}


def test_the_work_of_a_worker_stays_counted_when_it_is_gone() -> None:
    bench = ready_bench()
    bench.work(done_so_far(steps=3, tokens=30, pages=5))
    bench.work(done_so_far(steps=8, tokens=80, pages=7))  # cumulative: it replaces the first
    bench.handle(WorkerGone("w0", "it died"))
    bench.add_worker("w1", b"new")
    bench.work(done_so_far(steps=1, tokens=10, pages=2), peer=b"new")
    told = ask(bench)
    assert told["work"]["steps"] == {"train": 9}
    assert told["work"]["tokens"] == {"trained": 90}
    assert told["work"]["busy_s"] == {"train": 2.25}
    assert told["work"]["tenants"] == {"train": {"counts": [9, 0], "sum": 9}}
    assert told["memory"] == {"used": {"kv_pages": 2}, "total": {"kv_pages": 64}}
    assert (told["workers_lost"], told["runs_lost"]) == (1, 1)


def test_a_worker_that_says_hello_anew_begins_at_zero_and_nothing_runs_backwards() -> None:
    bench = ready_bench()
    bench.work(done_so_far(steps=8))
    bench.add_worker("w0", b"again")
    assert ask(bench)["work"]["steps"] == {"train": 8}
    bench.work(done_so_far(steps=2), peer=b"again")
    assert ask(bench)["work"]["steps"] == {"train": 10}


def test_workers_with_other_buckets_are_summed_as_far_as_they_go() -> None:
    totals = WorkTotals()
    totals.add(done_so_far(steps=2))
    other = WorkTotals()
    other.tenants["train"] = [1, 1, 5]
    totals.add(other)
    assert totals.tenants == {"train": [3, 1, 5]}


def test_faults_of_the_server_are_told_before_there_is_one() -> None:
    bench = ready_bench()
    told = metrics(bench)["requests"]["create_run"]
    assert told.pop("ok") == 1
    assert {"busy", "internal", "run_lost", "out_of_memory"} <= told.keys()
    assert not any(told.values())
    assert "bad_request" not in told


def test_a_code_that_is_none_is_an_internal_one() -> None:
    found = Metrics()
    found.outcome("sample", "no_such_code")
    found.refuse("nor_this")
    assert found.to_fields()["requests"]["sample"]["internal"] == 1
    assert found.to_fields()["refused"] == {"internal": 1}


def one_at_a_time(**settings: Any) -> CoreBench:
    """A bench with an open run, whose worker takes one request of each side at a time."""
    bench = CoreBench(**settings)
    bench.hello()
    bench.add_worker(train_credit=1, sample_credit=1)
    bench.open_run()
    return bench


def ask(bench: CoreBench) -> dict[str, Any]:
    """The answer to a query of metrics."""
    (action,) = bench.say(Query(request_id=99, what="metrics"))
    header: Any = action.header  # type: ignore[union-attr]
    assert isinstance(header, Reply), header
    return header.result


def ends(told: dict[str, Any]) -> list[float]:
    """Upper ends of the buckets with values."""
    return [SECONDS[i] for i, n in enumerate(told["counts"]) for _ in range(n)]
