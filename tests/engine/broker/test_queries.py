"""Reading the broker's books."""

from typing import Any

import pytest
from core_bench import (
    CARD,
    LANE,
    OTHER,
    RUN,
    SAMPLER,
    SESSION,
    CoreBench,
    checkpoint,
    create_run,
    create_sampler,
    optim_step,
    ready_bench,
    save_for_sampler,
    save_state,
    told,
)

from weft.client import wire
from weft.client.messages import Hello, Query, Reply
from weft.client.worker_messages import WorkerHello, WorkerProgress
from weft.engine.broker.events import CatalogLoaded, StopRequested


def ask(bench: CoreBench, what: str, subject: str = "", offset: int = 0) -> dict[str, Any]:
    actions: list[Any] = bench.say(Query(request_id=99, what=what, subject=subject, offset=offset))
    (action,) = actions
    assert isinstance(action.header, Reply), action.header
    wire.encode(action.header)
    return action.header.result


def test_capabilities_name_the_models_and_the_state() -> None:
    bench = CoreBench()
    bench.hello()
    assert ask(bench, "capabilities") == {"models": [], "state": "loading", "loading": []}
    bench.work(WorkerHello(versions=[1], worker_id="w0", secret="", pid=1))
    bench.work(WorkerProgress(phase="reading weights", fraction=0.4))
    assert ask(bench, "capabilities")["loading"] == [{"phase": "reading weights", "fraction": 0.4}]
    (worker,) = ask(bench, "status")["workers"]
    assert (worker["state"], worker["progress"]) == ("loading", "reading weights, 40 %")
    bench.add_worker()
    told_models = ask(bench, "capabilities")
    assert told_models["state"] == "ready"
    assert [model["name"] for model in told_models["models"]] == [CARD.name]
    bench.say(create_run())
    bench.handle(StopRequested())
    assert ask(bench, "capabilities")["state"] == "stopping"


def test_a_run_is_described_with_what_the_worker_said() -> None:
    bench = CoreBench()
    bench.hello()
    bench.add_worker()
    bench.say(create_run(base_model="org/tiny", user_metadata={"who": "me"}))
    bench.finish(rank=8, base_model="tiny", tokenizer="/models/tiny")
    bench.say(optim_step(1))
    told_run = ask(bench, "run", RUN)
    expected = {
        "run_id": RUN,
        "base_model": "tiny",
        "rank": 8,
        "next_seq": 2,
        "state": "open",
        "is_lost": False,
        "last_request_time": 1000.0,
        "user_metadata": {"who": "me"},
    }
    assert {key: told_run[key] for key in expected} == expected


def test_lists_come_in_pages_that_fit_a_header() -> None:
    bench = CoreBench()
    bench.hello()
    metadata = {"note": "x" * 1000}
    many = tuple(checkpoint(f"c{i}", user_metadata=metadata, created=float(i)) for i in range(100))
    bench.handle(CatalogLoaded(many))
    names, offset, pages = [], 0, 0
    while offset >= 0:
        page = ask(bench, "checkpoints", offset=offset)
        names += [entry["name"] for entry in page["checkpoints"]]
        offset, pages = page["next"], pages + 1
    assert names == [f"c{i}" for i in reversed(range(100))]
    assert pages > 1


def test_an_entry_too_large_for_a_header_is_told_without_its_metadata() -> None:
    bench = CoreBench()
    bench.hello()
    metadata = {str(i): "x" * 1000 for i in range(60)}
    bench.handle(CatalogLoaded((checkpoint("big", user_metadata=metadata),)))
    (entry,) = ask(bench, "checkpoints")["checkpoints"]
    assert (entry["user_metadata"], entry["omitted"]) == ({}, "user_metadata")


def test_much_metadata_is_left_out_of_a_list_and_told_when_asked_for() -> None:
    bench = CoreBench()
    bench.hello()
    metadata = {str(i): "x" * 1000 for i in range(20)}
    large = checkpoint("large", user_metadata=metadata, created=1.0)
    bench.handle(CatalogLoaded((large, checkpoint("small", created=2.0))))
    listed = ask(bench, "checkpoints")["checkpoints"]
    assert [entry.get("omitted", "") for entry in listed] == ["", "user_metadata"]
    (alone,) = ask(bench, "checkpoints", large.path)["checkpoints"]
    assert alone["user_metadata"] == metadata


def test_checkpoints_are_entered_when_they_are_saved() -> None:
    bench = ready_bench()
    bench.say(save_state(1, name="first", user_metadata={"a": "b"}))
    bench.finish(size_bytes=77)
    bench.say(save_for_sampler(2, name="frozen"))
    bench.finish(path="ignored", size_bytes=33)
    listed = ask(bench, "checkpoints", RUN)["checkpoints"]
    found = {entry["path"]: (entry["size_bytes"], entry["user_metadata"]) for entry in listed}
    assert found == {
        f"weft://{RUN}/weights/first": (77, {"a": "b"}),
        f"weft://{RUN}/sampler_weights/frozen": (33, {}),
    }
    one = ask(bench, "checkpoints", f"weft://{RUN}/weights/first")["checkpoints"]
    assert [entry["time"] for entry in one] == [1000.0]


def test_a_sampler_is_described() -> None:
    bench = ready_bench()
    bench.say(create_sampler(2))
    bench.finish(base_model="tiny")
    assert ask(bench, "sampler", SAMPLER) == {
        "sampler_id": SAMPLER,
        "base_model": "tiny",
        "model_path": "",
        "run_id": "",
        "state": "open",
    }


def test_status_counts_usage_by_lane() -> None:
    bench = ready_bench()
    bench.say(optim_step(1))
    bench.finish()
    status = ask(bench, "status")
    (lane,) = status["lanes"]
    assert (lane["lane"], lane["usage"]) == (LANE, {"create_run": 1, "optim_step": 1})
    assert status["workers"][0]["runs"] == 1


def test_the_books_of_another_tenant_are_closed() -> None:
    bench = CoreBench(tenant_of=lambda key: key or "local")
    bench.hello()
    bench.add_worker()
    bench.open_run()
    bench.handle(CatalogLoaded((checkpoint("mine"),)))
    bench.hello(OTHER, b"client", api_key="spy")
    assert ask(bench, "runs") == {"runs": [], "next": -1, "total": 0}
    assert ask(bench, "checkpoints", RUN) == {"checkpoints": [], "next": -1, "total": 0}
    assert [lane["lane"] for lane in ask(bench, "status")["lanes"]] == [f"spy/{OTHER}"]
    for what, subject in (("run", RUN), ("checkpoints", f"weft://{RUN}/weights/mine")):
        header = Query(request_id=9, what=what, subject=subject)
        assert told(bench.say(header)) == [(9, "not_found")]


@pytest.mark.parametrize(
    ("header", "code"),
    [
        (Query(request_id=9, what="secrets"), "bad_request"),
        (Query(request_id=9, what="run"), "not_found"),
        (Query(request_id=9, what="sampler", subject=f"{SESSION}:sample:9"), "not_found"),
        (Query(request_id=9, what="checkpoints", subject="weft://x"), "bad_request"),
        (Query(request_id=9, what="runs", offset=-1), "bad_request"),
    ],
)
def test_a_bad_query_is_refused(header: Query, code: str) -> None:
    assert told(ready_bench().say(header)) == [(9, code)]


def test_a_session_is_listed_with_what_it_said_of_itself() -> None:
    bench = CoreBench()
    bench.say(Hello(versions=[1], session_id=SESSION, user_metadata={"who": "me"}))
    (lane,) = ask(bench, "status")["lanes"]
    assert (lane["lane"], lane["user_metadata"]) == (LANE, {"who": "me"})
