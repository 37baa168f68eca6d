"""What a tenant is told of its runs, sessions and samplers."""

from typing import Any

import pytest
from core_bench import (
    OTHER,
    RUN,
    SAMPLER,
    SESSION,
    CoreBench,
    checkpoint,
    create_run,
    create_sampler,
    digest,
    optim_step,
    ready_bench,
    sampling_bench,
    save_for_sampler,
    save_state,
    told,
)

from weft.client import wire
from weft.client.limits import limit
from weft.client.messages import CloseSampler, Goodbye, Hello, Query, Reply
from weft.engine.broker.events import CatalogLoaded, ToClient
from weft.engine.files.checkpoint import Checkpoint

OTHER_CLIENT = b"other"


def ask(bench: CoreBench, what: str, subject: str = "", **fields: Any) -> dict[str, Any]:
    (action,) = bench.say(Query(request_id=99, what=what, subject=subject, **fields))
    assert isinstance(action, ToClient)
    assert isinstance(action.header, Reply), action.header
    wire.encode(action.header)
    return action.header.result


def run_id(number: int, session_id: str = SESSION) -> str:
    return f"{session_id}:train:{number}"


def saved(number: int, name: str = "a", kind: str = "weights", **fields: Any) -> Checkpoint:
    path = f"weft://{run_id(number)}/{kind}/{name}"
    return checkpoint(name, path=path, **fields)


def restarted(*records: Checkpoint) -> CoreBench:
    """A server that finds checkpoints of before, and a client in a new session."""
    bench = CoreBench()
    bench.handle(CatalogLoaded(records))
    bench.hello(OTHER)
    return bench


def open_runs(bench: CoreBench, *numbers: int) -> None:
    for number in numbers:
        bench.now += 10.0
        bench.say(create_run(20 + number, run_id(number), digest=digest(f"create{number}")))
        bench.finish(rank=4, alpha=32.0, base_model="tiny")


def ids(page: dict[str, Any]) -> list[str]:
    return [entry["run_id"] for entry in page["runs"]]


# Runs.


def test_the_latest_request_comes_first_whoever_began_first() -> None:
    bench = ready_bench()
    open_runs(bench, 1, 2)
    bench.now += 10.0
    bench.say(optim_step(1))
    assert ids(ask(bench, "runs")) == [RUN, run_id(2), run_id(1)]


def test_a_list_of_runs_has_live_ones_and_what_was_saved_by_their_times() -> None:
    bench = ready_bench()
    open_runs(bench, 1)
    bench.handle(CatalogLoaded((saved(8, created=1005.0), saved(9, created=2.0), saved(1))))
    page = ask(bench, "runs")
    assert ids(page) == [run_id(1), run_id(8), RUN, run_id(9)]
    assert (page["total"], [entry["state"] for entry in page["runs"]]) == (
        4,
        ["open", "saved", "open", "saved"],
    )
    second = ask(bench, "runs", offset=1, limit=2)
    assert (ids(second), second["next"], second["total"]) == ([run_id(8), RUN], 3, 4)


def test_a_run_lives_on_in_its_newest_checkpoint() -> None:
    bench = restarted(
        saved(3, "old", created=1.0, rank=2),
        saved(3, "new", created=5.0, rank=8, train_mlp=False),
    )
    told_run = ask(bench, "run", run_id(3))
    assert (told_run["base_model"], told_run["rank"], told_run["train_mlp"]) == ("tiny", 8, False)
    assert (told_run["state"], told_run["last_request_time"]) == ("saved", 5.0)
    assert (told_run["owner"], told_run["session_id"]) == ("local", SESSION)
    assert ask(bench, "runs")["runs"] == [told_run]


def test_the_last_checkpoints_of_a_run_are_told_by_kind() -> None:
    bench = restarted(
        saved(0, "a", created=1.0),
        saved(0, "b", created=3.0),
        saved(0, "c", created=2.0),
        saved(0, "s", "sampler_weights", created=4.0),
        saved(0, "e", "external_weights", created=5.0),
    )
    told_run = ask(bench, "run", run_id(0))
    assert told_run["last_checkpoint"]["path"] == f"weft://{RUN}/weights/b"
    assert told_run["last_sampler_checkpoint"]["path"] == f"weft://{RUN}/sampler_weights/s"


def test_a_run_without_checkpoints_has_no_last_one() -> None:
    told_run = ask(ready_bench(), "run", RUN)
    assert (told_run["last_checkpoint"], told_run["last_sampler_checkpoint"]) == (None, None)


def test_a_run_whose_checkpoints_are_noted_at_length_is_still_told() -> None:
    metadata = {str(i): "x" * 1000 for i in range(50)}
    bench = restarted(
        saved(0, "a", user_metadata=metadata),
        saved(0, "s", "sampler_weights", user_metadata=metadata),
    )
    for entry in (ask(bench, "run", RUN), *ask(bench, "runs")["runs"]):
        assert entry["last_checkpoint"]["omitted"] == "user_metadata"


def test_a_run_that_was_never_created_is_left_out_and_says_why_when_asked() -> None:
    bench = ready_bench()
    bench.say(create_run(30, run_id(1), digest=digest("second")))
    bench.fail("too_large")
    assert ids(ask(bench, "runs")) == [RUN]
    told_run = ask(bench, "run", run_id(1))
    assert (told_run["state"], "was not created" in told_run["detail"]) == ("closed", True)


# Checkpoints.


def test_a_page_of_checkpoints_is_the_newest_first() -> None:
    bench = restarted(*(saved(n, created=float(n)) for n in range(5)))
    page = ask(bench, "checkpoints", offset=1, limit=2)
    assert [entry["time"] for entry in page["checkpoints"]] == [3.0, 2.0]
    assert (page["next"], page["total"]) == (3, 5)


def test_external_weights_are_entered_when_they_are_saved() -> None:
    bench = ready_bench()
    bench.say(save_for_sampler(1, name="e", sampler_id="", is_external=True, ttl_s=60))
    bench.finish(size_bytes=5, created=1000.0, expires=1060.0)
    (entry,) = ask(bench, "checkpoints", RUN)["checkpoints"]
    assert (entry["path"], entry["kind"]) == (
        f"weft://{RUN}/external_weights/e",
        "external_weights",
    )
    assert (entry["size_bytes"], entry["expires"], entry["has_optimizer"]) == (5, 1060.0, False)


def test_a_state_saved_anew_is_private_again() -> None:
    bench = ready_bench()
    bench.handle(CatalogLoaded((checkpoint("a", public=True),)))
    bench.say(save_state(1, "a", overwrite=True))
    bench.finish(size_bytes=5)
    (entry,) = ask(bench, "checkpoints", RUN)["checkpoints"]
    assert not entry["public"]


# Sessions.


def test_sessions_are_listed_latest_first_and_ended_ones_stay() -> None:
    bench = CoreBench(past_sessions=1)
    names = [letter * 32 for letter in "abcd"]
    for number, name in enumerate(names):
        bench.now += 10.0
        bench.hello(name, b"client" if number == 3 else name.encode())
    for name in names[:2]:
        bench.say(Goodbye(), peer=name.encode())
    page = ask(bench, "sessions")
    found = [(entry["session_id"], entry["is_ended"]) for entry in page["sessions"]]
    assert found == [(names[3], False), (names[2], False), (names[1], True)]
    assert page["total"] == 3


def test_a_session_says_what_it_is_and_has() -> None:
    bench = CoreBench()
    hello = Hello(
        versions=[1],
        session_id=SESSION,
        user_metadata={"who": "me"},
        display_name="Mine",
        tags=["x", "y"],
    )
    bench.say(hello)
    bench.add_worker()
    open_runs(bench, 2, 10)
    bench.say(create_sampler(2))
    bench.finish(base_model="tiny")
    bench.handle(CatalogLoaded((saved(7),)))
    assert ask(bench, "session", SESSION) == {
        "session_id": SESSION,
        "opened": 1000.0,
        "is_ended": False,
        "ending": "",
        "display_name": "Mine",
        "tags": ["x", "y"],
        "user_metadata": {"who": "me"},
        "run_ids": [run_id(10), run_id(2), run_id(7)],
        "sampler_ids": [SAMPLER],
        "next": -1,
        "total": 4,
    }


@pytest.mark.parametrize(
    ("offset", "runs", "samplers"), [(0, [5, 4], []), (2, [], [0]), (3, [], [])]
)
def test_what_a_session_has_comes_in_pages(
    offset: int, runs: list[int], samplers: list[int]
) -> None:
    bench = restarted(saved(4, created=1.0), saved(5, created=2.0))
    bench.hello(SESSION, OTHER_CLIENT)
    bench.say(create_sampler(2), peer=OTHER_CLIENT)
    page = ask(bench, "session", SESSION, offset=offset, limit=2)
    assert page["run_ids"] == [run_id(number) for number in runs]
    assert page["sampler_ids"] == [f"{SESSION}:sample:{number}" for number in samplers]
    assert page["total"] == 3


def test_an_ended_session_is_told_with_its_runs_and_samplers() -> None:
    bench = sampling_bench()
    bench.hello(OTHER, OTHER_CLIENT)
    bench.say(Goodbye(ending="errored: out of patience"))
    bench.hello(OTHER)
    found = ask(bench, "session", SESSION)
    assert (found["is_ended"], found["run_ids"], found["sampler_ids"]) == (True, [RUN], [SAMPLER])
    assert found["ending"] == "errored: out of patience"


def test_a_session_of_which_checkpoints_are_left_is_told() -> None:
    bench = restarted(saved(0, created=5.0), saved(1, created=3.0))
    found = ask(bench, "session", SESSION)
    assert (found["opened"], found["is_ended"]) == (3.0, True)
    assert found["run_ids"] == [RUN, run_id(1)]
    listed = [entry["session_id"] for entry in ask(bench, "sessions")["sessions"]]
    assert listed == [OTHER, SESSION]


def test_a_session_with_more_runs_than_fit_is_told_in_pages() -> None:
    bench = restarted(*(saved(n, created=float(n)) for n in range(2000)))
    found, offset = [], 0
    while offset >= 0:
        page = ask(bench, "session", SESSION, offset=offset)
        found += page["run_ids"]
        offset = page["next"]
    assert found == [run_id(n) for n in reversed(range(2000))]


def test_a_session_that_says_all_it_may_of_itself_is_told_with_its_runs() -> None:
    bench = restarted(*(saved(n) for n in range(2000)))
    wide = "\U0001f9f5"  # of four bytes
    tags, name = [wide * limit("name_length")] * 64, wide * 1024
    hello = Hello(versions=[1], session_id=SESSION, tags=tags, display_name=name)
    bench.say(hello, peer=OTHER_CLIENT)
    bench.say(Goodbye(ending=name), peer=OTHER_CLIENT)
    found = ask(bench, "session", SESSION)
    assert (found["tags"], found["display_name"], found["ending"]) == (tags, name, name)
    assert len(found["run_ids"]) > 100


@pytest.mark.parametrize("subject", ["", SESSION[:31], RUN, f"{SESSION}:train"])
def test_a_part_of_an_id_is_no_session(subject: str) -> None:
    bench = restarted(saved(0))
    assert told(bench.say(Query(request_id=9, what="session", subject=subject))) == [
        (9, "not_found")
    ]


# Samplers.


def test_a_closed_sampler_is_still_told_and_one_that_never_opened_is_not() -> None:
    bench = sampling_bench()
    bench.say(create_sampler(3, sampler_id=f"{SESSION}:sample:1"))
    bench.fail("bad_request")
    bench.say(CloseSampler(request_id=4, sampler_id=SAMPLER))
    found = ask(bench, "sampler", SAMPLER)
    assert (found["state"], found["base_model"]) == ("closed", "tiny")
    never = Query(request_id=99, what="sampler", subject=f"{SESSION}:sample:1")
    assert told(bench.say(never)) == [(99, "not_found")]


def test_closed_samplers_are_forgotten_in_the_end() -> None:
    bench = ready_bench(past_samplers=1)
    for number in range(2):
        name = f"{SESSION}:sample:{number}"
        bench.say(create_sampler(30 + number, sampler_id=name))
        bench.finish(base_model="tiny")
        bench.say(CloseSampler(request_id=40 + number, sampler_id=name))
    assert told(bench.say(Query(request_id=9, what="sampler", subject=SAMPLER))) == [
        (9, "not_found")
    ]
    assert ask(bench, "sampler", f"{SESSION}:sample:1")["state"] == "closed"


# Others.


def test_foreign_things_answer_like_unknown_ones() -> None:
    keys = {"": "local", "k": "somebody else"}
    bench = sampling_bench(tenant_of=keys.get)
    bench.handle(CatalogLoaded((saved(7),)))
    bench.say(Goodbye())
    bench.hello("d" * 32, OTHER_CLIENT)
    bench.hello(OTHER, b"client", "k")
    unknown = "c" * 32
    for what, subject in (
        ("run", RUN),
        ("run", run_id(7)),
        ("session", SESSION),
        ("sampler", SAMPLER),
    ):
        replies = []
        for one in (subject, subject.replace(SESSION, unknown)):
            (action,) = bench.say(Query(request_id=99, what=what, subject=one))
            assert isinstance(action, ToClient)
            replies.append(repr(action.header).replace(SESSION, unknown))
        assert replies[0] == replies[1]
        assert "not_found" in replies[0]
    assert [entry["session_id"] for entry in ask(bench, "sessions")["sessions"]] == [OTHER]
    assert ask(bench, "runs")["total"] == 0
