"""The answer to a query of metrics: levels, and nothing of anybody in particular."""

from typing import Any

import msgpack
from core_bench import (
    OTHER,
    SESSION,
    CoreBench,
    checkpoint,
    create_run,
    create_sampler,
    forward_backward,
    optim_step,
    sample,
)

from weft.client import wire
from weft.client.errors import CODES
from weft.client.limits import limit
from weft.client.messages import Query, Reply, Watch
from weft.client.worker_messages import WorkerHello
from weft.engine.broker.events import CatalogLoaded

PAGE_BYTES = 40_000


def ask(bench: CoreBench, peer: bytes = b"client") -> dict[str, Any]:
    (action,) = bench.say(Query(request_id=99, what="metrics"), peer=peer)
    header: Any = action.header  # type: ignore[union-attr]
    assert isinstance(header, Reply), header
    assert wire.decode(wire.encode(header)) == header
    return header.result


def busy_bench() -> CoreBench:
    """Two sessions, one worker with little credit, requests in every state but storing."""
    bench = CoreBench(started=7.0)
    bench.hello()
    bench.add_worker(train_credit=1, sample_credit=1)
    bench.work(WorkerHello(versions=[1], worker_id="w1", secret="", pid=1), peer=b"late")
    bench.open_run()
    bench.say(create_sampler(2))
    bench.finish()
    bench.hello(OTHER, b"other")
    bench.say(optim_step(1))  # dispatched
    bench.say(forward_backward(2), b"payload")  # queued
    bench.say(optim_step(4))  # held: number 3 is missing
    for number in (30, 31, 32):  # one dispatched, two queued
        bench.say(sample(number))
    bench.say(Watch(request_id=60, enabled=True), peer=b"other")
    bench.handle(CatalogLoaded((checkpoint("a"), checkpoint("b"))))
    return bench


def test_levels_are_those_of_all_sessions() -> None:
    told = ask(busy_bench())
    levels = told["levels"]
    assert levels.pop("waiting_bytes") > 0
    assert levels.pop("kept_bytes") > 0
    assert levels == {
        "held": 1,
        "queued": 3,
        "dispatched": 2,
        "storing": 0,
        "sessions": 2,
        "connected_sessions": 2,
        "runs": 1,
        "samplers": 1,
        "watchers": 1,
        "checkpoints": 2,
        "ready_workers": 1,
        "loading_workers": 1,
    }
    assert (told["state"], told["started"]) == ("ready", 7.0)


def test_everybody_is_told_the_same_and_nobody_is_named() -> None:
    bench = busy_bench()
    mine, theirs = ask(bench), ask(bench, b"other")
    mine["requests"].pop("query", None), theirs["requests"].pop("query")
    assert mine == theirs
    told = msgpack.packb(theirs)
    for secret in (SESSION, OTHER, "train:0", "w0", "local", "weft://"):
        assert secret.encode() not in told


def test_a_lost_run_is_not_open() -> None:
    bench = busy_bench()
    bench.add_worker("w0", b"anew")
    levels = ask(bench)["levels"]
    assert (levels["runs"], levels["held"], levels["dispatched"]) == (0, 0, 1)


def test_it_fits_into_a_header_when_everything_has_happened() -> None:
    bench = CoreBench()
    bench.hello()
    metrics = bench.core._books.metrics
    for kind in wire.KINDS:
        metrics.took(kind, 1.0)
        metrics.waited(kind, 1.0)
        for code in ("", *CODES):
            metrics.outcome(kind, code)
    for histogram in (*metrics.latency.values(), *metrics.queue.values()):
        histogram.counts = [2**40] * len(histogram.counts)
    assert len(msgpack.packb(ask(bench))) < PAGE_BYTES < limit("header_bytes")


def test_a_session_of_a_fresh_broker_sees_zeros() -> None:
    bench = CoreBench()
    bench.hello()
    told = ask(bench)
    assert told["state"] == "loading"
    assert told["requests"] == {}
    bench.say(create_run())
    assert ask(bench)["levels"]["queued"] == 1
