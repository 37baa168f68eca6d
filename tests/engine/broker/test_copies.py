"""Checkpoints that are copied, and public ones that others read."""

from typing import Any

import pytest
from core_bench import (
    OTHER,
    RUN,
    SESSION,
    CoreBench,
    checkpoint,
    create_run,
    create_sampler,
    digest,
    dispatched,
    ready_bench,
    save_state,
    told,
)

from weft.client.file_messages import CopyCheckpoint, OpenDownload
from weft.client.messages import CreateSampler, LoadState, Query, Reply
from weft.engine.broker.events import CatalogLoaded, StoreDone, StoreJob, ToClient
from weft.engine.files.checkpoint import Checkpoint
from weft.engine.files.jobs import CopyState, JobResult, OpenState

PATH = f"weft://{RUN}/weights/a"
TARGET = f"weft://{SESSION}:train:7/weights/b"
THEIRS = b"other"


def copy(request_id: int = 50, **fields: Any) -> CopyCheckpoint:
    return CopyCheckpoint(request_id=request_id, **{"path": PATH, "target": TARGET} | fields)


def copied(**fields: Any) -> StoreDone:
    record = checkpoint("b", **{"path": TARGET, "size_bytes": 7} | fields)
    result = {"path": record.path, "size_bytes": record.size_bytes}
    return StoreDone(1, JobResult(result=result, record=record))


def bench_with(*records: Checkpoint, **settings: Any) -> CoreBench:
    bench = ready_bench(**settings)
    bench.handle(CatalogLoaded(records))
    return bench


def shared_bench(public: bool) -> CoreBench:
    """A checkpoint of the tenant "local", and a client of another tenant."""
    keys = {"": "local", "k": "somebody else"}
    bench = bench_with(checkpoint("a", public=public, user_metadata={"a": "b"}), tenant_of=keys.get)
    bench.hello(OTHER, THEIRS, "k")
    return bench


def test_a_copy_is_made_by_the_store_and_then_there() -> None:
    bench = bench_with(checkpoint("a"))
    asked = bench.say(copy(ttl_s=60, user_metadata={"a": "b"}))
    assert asked == [StoreJob(1, CopyState(PATH, TARGET, "local", 60, {"a": "b"}))]
    assert TARGET not in bench.core._books.catalog
    assert told(bench.handle(copied())) == [(50, "")]
    assert bench.core._books.catalog.find(TARGET, "local").size_bytes == 7
    assert told(bench.say(copy())) == [(50, "")]


def test_a_name_is_taken_while_its_copy_is_written() -> None:
    bench = bench_with(checkpoint("a"))
    target = f"weft://{RUN}/weights/b"
    bench.say(copy(target=target))
    assert told(bench.say(copy(51, target=target))) == [(51, "conflict")]
    assert told(bench.say(save_state(1, "b"))) == [(11, "busy")]
    bench.handle(StoreDone(1, JobResult(code="internal", detail="the disk is full")))
    assert dispatched(bench.say(save_state(1, "b"))) == [("save_state", 1)]


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        pytest.param({"target": PATH}, "conflict", id="a path that is taken"),
        pytest.param({"target": f"weft://{OTHER}:train:0/weights/b"}, "bad_request", id="session"),
        pytest.param({"target": f"weft://{RUN}/sampler_weights/b"}, "bad_request", id="kind"),
        pytest.param({"target": "/etc/passwd"}, "bad_request", id="no path"),
        pytest.param({"path": f"weft://{RUN}/weights/x"}, "not_found", id="no such source"),
        pytest.param({"ttl_s": -1}, "bad_request", id="ttl"),
    ],
)
def test_a_copy_that_cannot_be_is_refused(fields: dict[str, Any], code: str) -> None:
    assert told(bench_with(checkpoint("a")).say(copy(**fields))) == [(50, code)]


def test_a_copy_counts_against_its_owners_limit() -> None:
    bench = bench_with(checkpoint("a"), checkpoints=1)
    assert told(bench.say(copy())) == [(50, "too_large")]


def theirs(bench: CoreBench, name: str) -> tuple[str, bool]:
    """How another tenant fares with a way to read the checkpoint: code, and whether work began."""
    mine = f"{OTHER}:train:0"
    header: Any = {
        "create": create_run(5, mine, from_path=PATH, digest=digest("theirs")),
        "sampler": create_sampler(5, sampler_id=f"{OTHER}:sample:0", model_path=PATH),
        "download": OpenDownload(request_id=5, path=PATH, form="peft"),
        "copy": copy(5, target=f"weft://{mine}/weights/b"),
        "query": Query(request_id=5, what="checkpoints", subject=PATH),
    }[name]
    actions = bench.say(header, peer=THEIRS)
    codes = [code for number, code in told(actions, THEIRS) if number == 5]
    jobs = [action.job for action in actions if isinstance(action, StoreJob)]
    is_begun = bool(dispatched(actions)) or any(isinstance(j, OpenState | CopyState) for j in jobs)
    return "".join(codes), is_begun


READS = ["create", "sampler", "download", "copy", "query"]


@pytest.mark.parametrize("name", READS)
def test_a_public_checkpoint_is_read_by_everybody(name: str) -> None:
    assert theirs(shared_bench(public=True), name) == ("", name != "query")


@pytest.mark.parametrize("name", READS)
def test_a_private_checkpoint_is_read_by_its_owner_alone(name: str) -> None:
    assert theirs(shared_bench(public=False), name) == ("not_found", False)


def test_a_public_checkpoint_is_loaded_into_a_run_of_another_tenant() -> None:
    bench = shared_bench(public=True)
    bench.open_run(OTHER, THEIRS)
    run_id = f"{OTHER}:train:0"
    load = LoadState(request_id=9, run_id=run_id, seq=1, digest=b"", path=PATH, with_optimizer=True)
    assert dispatched(bench.say(load, peer=THEIRS)) == [("load_state", 1)]


def test_the_path_of_a_public_checkpoint_tells_others_nothing_its_owner_noted() -> None:
    bench = shared_bench(public=True)
    header = Query(request_id=5, what="checkpoints", subject=PATH)
    (action,) = bench.say(header, peer=THEIRS)
    assert isinstance(action, ToClient)
    assert isinstance(action.header, Reply)
    (entry,) = action.header.result["checkpoints"]
    assert (entry["base_model"], entry["public"], entry["user_metadata"]) == ("tiny", True, {})


def test_a_public_checkpoint_is_sent_to_others_as_not_their_own() -> None:
    bench = shared_bench(public=True)
    header = OpenDownload(request_id=5, path=PATH, form="state")
    own = [action.job for action in bench.say(header) if isinstance(action, StoreJob)]
    others = [a.job for a in bench.say(header, peer=THEIRS) if isinstance(a, StoreJob)]
    assert own == [OpenState(1, PATH, "state", "include", "", is_own=True)]
    assert others == [OpenState(2, PATH, "state", "include", "", is_own=False)]


def test_a_sampler_of_a_checkpoint_that_is_public_no_more_goes_on() -> None:
    bench = shared_bench(public=True)
    header = CreateSampler(request_id=5, sampler_id=f"{OTHER}:sample:0", model_path=PATH)
    bench.say(header, peer=THEIRS)
    bench.finish(base_model="tiny")
    bench.handle(CatalogLoaded((checkpoint("a"),)))
    assert bench.core._books.samplers[f"{OTHER}:sample:0"].phase.value == "open"
    again = CreateSampler(request_id=6, sampler_id=f"{OTHER}:sample:1", model_path=PATH)
    assert told(bench.say(again, peer=THEIRS), THEIRS) == [(6, "not_found")]
