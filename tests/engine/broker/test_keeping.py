"""Checkpoints that are deleted, renamed, or expire."""

from typing import Any

import pytest
from core_bench import (
    CLIENT,
    OTHER,
    RUN,
    CoreBench,
    checkpoint,
    create_sampler,
    ready_bench,
    save_for_sampler,
    save_state,
    told,
)

from weft.client.file_messages import (
    DeleteCheckpoint,
    ExpireCheckpoint,
    PublishCheckpoint,
    RenameCheckpoint,
)
from weft.client.messages import Ack, LoadState, Query, Reply, Resume
from weft.engine.broker.events import (
    Action,
    CatalogLoaded,
    StopRequested,
    StoreDone,
    StoreJob,
    Tick,
    ToClient,
)
from weft.engine.files.checkpoint import Checkpoint
from weft.engine.files.jobs import (
    DeleteState,
    ExpireState,
    JobResult,
    PublishState,
    RenameState,
)

PATH = f"weft://{RUN}/weights/a"
OTHER_CLIENT = b"other"
FAILED = JobResult(code="internal", detail="the disk is full")


def bench_with(*records: Checkpoint, **settings: Any) -> CoreBench:
    bench = ready_bench(**settings)
    bench.handle(CatalogLoaded(records))
    return bench


def delete(request_id: int = 50, path: str = PATH) -> DeleteCheckpoint:
    return DeleteCheckpoint(request_id=request_id, path=path)


def rename(name: str, request_id: int = 50) -> RenameCheckpoint:
    return RenameCheckpoint(request_id=request_id, path=PATH, name=name)


def expire(ttl_s: int, request_id: int = 50) -> ExpireCheckpoint:
    return ExpireCheckpoint(request_id=request_id, path=PATH, ttl_s=ttl_s)


def publish(public: bool = True, request_id: int = 50) -> PublishCheckpoint:
    return PublishCheckpoint(request_id=request_id, path=PATH, public=public)


def paths(bench: CoreBench) -> list[str]:
    (action,) = bench.say(Query(request_id=99, what="checkpoints"))
    assert isinstance(action, ToClient)
    assert isinstance(action.header, Reply)
    return [entry["path"] for entry in action.header.result["checkpoints"]]


def jobs(actions: list[Action]) -> list[Action]:
    return [action for action in actions if isinstance(action, StoreJob)]


def done(number: int, **fields: Any) -> StoreDone:
    return StoreDone(number, JobResult(**fields))


def test_a_checkpoint_is_gone_at_once_and_its_file_soon() -> None:
    bench = bench_with(checkpoint("a"), checkpoint("b"))
    assert bench.say(delete()) == [StoreJob(1, DeleteState(PATH))]
    assert paths(bench) == [f"weft://{RUN}/weights/b"]
    assert bench.handle(done(1)) == [ToClient(CLIENT, Reply(request_id=50))]


def test_a_file_that_cannot_be_deleted_is_a_checkpoint_again() -> None:
    bench = bench_with(checkpoint("a"))
    bench.say(delete())
    assert told(bench.handle(StoreDone(1, FAILED))) == [(50, "internal")]
    assert paths(bench) == [PATH]
    assert bench.say(delete(51)) == [StoreJob(2, DeleteState(PATH))]


def test_a_repeated_delete_is_answered_from_memory() -> None:
    bench = bench_with(checkpoint("a"))
    bench.say(delete())
    assert bench.say(delete()) == []
    bench.handle(done(1))
    assert told(bench.say(delete())) == [(50, "")]
    bench.say(Ack(request_ids=[50]))
    assert told(bench.say(delete(51))) == [(51, "not_found")]


def test_after_a_reconnect_a_delete_need_not_be_sent_again() -> None:
    bench = bench_with(checkpoint("a"))
    bench.say(delete())
    (known,) = bench.say(Resume(request_ids=[50]))
    assert isinstance(known, ToClient)
    assert known.header is not None
    assert getattr(known.header, "request_ids", None) == [50]


@pytest.mark.parametrize("is_public", [False, True])
@pytest.mark.parametrize("header", [delete(), rename("b"), expire(60), publish(), publish(False)])
def test_foreign_checkpoints_answer_like_unknown_ones(header: Any, is_public: bool) -> None:
    bench = bench_with(
        checkpoint("a", public=is_public),
        tenant_of=lambda key: {"": "local", "k": "somebody else"}.get(key),
    )
    bench.hello(OTHER, OTHER_CLIENT, "k")
    foreign = bench.say(header, peer=OTHER_CLIENT)
    bench.say(delete(70))
    bench.handle(done(1))
    unknown = bench.say(header, peer=OTHER_CLIENT)
    assert foreign == unknown
    assert told(foreign, OTHER_CLIENT) == [(50, "not_found")]


def test_a_path_that_is_being_saved_waits() -> None:
    bench = bench_with(checkpoint("a"))
    bench.say(save_state(1, "a", overwrite=True))
    assert told(bench.say(delete())) == [(50, "busy")]
    assert told(bench.say(rename("b"))) == [(50, "busy")]
    assert told(bench.say(expire(60))) == [(50, "busy")]
    assert told(bench.say(publish())) == [(50, "busy")]
    bench.finish(path=PATH, size_bytes=5)
    assert bench.say(delete()) == [StoreJob(1, DeleteState(PATH))]


def test_a_path_that_is_being_changed_waits_for_its_turn_to_be_saved() -> None:
    bench = bench_with(checkpoint("a"))
    bench.say(delete())
    assert told(bench.say(save_state(1, "a"))) == [(11, "busy")]
    assert told(bench.say(delete(51))) == [(51, "not_found")]
    bench.handle(done(1))
    bench.say(save_state(1, "a"))
    bench.finish(path=PATH, size_bytes=5)
    assert paths(bench) == [PATH]


def test_a_renamed_checkpoint_has_its_new_path_alone() -> None:
    bench = bench_with(checkpoint("a"))
    assert bench.say(rename("b")) == [StoreJob(1, RenameState(PATH, "b"))]
    assert paths(bench) == []
    result = {"path": f"weft://{RUN}/weights/b"}
    assert bench.handle(done(1, result=result)) == [
        ToClient(CLIENT, Reply(request_id=50, result=result))
    ]
    assert paths(bench) == [f"weft://{RUN}/weights/b"]


def test_a_rename_that_fails_changes_nothing() -> None:
    bench = bench_with(checkpoint("a"))
    bench.say(rename("b"))
    assert told(bench.handle(StoreDone(1, FAILED))) == [(50, "internal")]
    assert paths(bench) == [PATH]


@pytest.mark.parametrize(
    ("name", "code"),
    [("a", "conflict"), ("b", "conflict"), ("../c", "bad_request"), ("", "bad_request")],
)
def test_a_name_that_is_taken_or_none_is_refused(name: str, code: str) -> None:
    bench = bench_with(checkpoint("a"), checkpoint("b"))
    assert told(bench.say(rename(name))) == [(50, code)]
    assert len(paths(bench)) == 2


def test_a_name_that_will_be_saved_is_not_given_away() -> None:
    bench = bench_with(checkpoint("a"))
    bench.say(save_state(1, "b"))
    assert told(bench.say(rename("b"))) == [(50, "busy")]


def test_a_checkpoint_expires_when_its_time_has_come() -> None:
    bench = bench_with(checkpoint("a"))
    assert bench.say(expire(60)) == [StoreJob(1, ExpireState(PATH, 1060.0))]
    bench.handle(done(1, result={"path": PATH, "expires": 1060.0}))
    assert jobs(bench.tick(59.0)) == []
    assert jobs(bench.tick(1.0)) == [StoreJob(2, DeleteState(PATH))]
    assert paths(bench) == []
    assert bench.handle(done(2)) == []
    assert jobs(bench.tick(1.0)) == []


def test_an_expiry_is_a_time_of_the_wall_clock() -> None:
    bench = bench_with(checkpoint("a"), wall_offset=5e8)
    assert bench.say(expire(60)) == [StoreJob(1, ExpireState(PATH, 5e8 + 1060))]
    bench.handle(done(1))
    assert jobs(bench.tick(59.0)) == []
    assert jobs(bench.tick(1.0)) == [StoreJob(2, DeleteState(PATH))]


def test_an_expiry_can_be_taken_back() -> None:
    bench = bench_with(checkpoint("a", expires=1010.0))
    assert bench.say(expire(0)) == [StoreJob(1, ExpireState(PATH, 0.0))]
    bench.handle(done(1))
    assert jobs(bench.tick(20.0)) == []
    assert paths(bench) == [PATH]


@pytest.mark.parametrize("ttl_s", [-1, 315_360_001, 2**62])
def test_a_time_to_live_beyond_its_range_is_refused(ttl_s: int) -> None:
    bench = bench_with(checkpoint("a"))
    assert told(bench.say(expire(ttl_s))) == [(50, "bad_request")]
    assert told(bench.say(save_state(1, ttl_s=ttl_s))) == [(11, "bad_request")]
    assert told(bench.say(save_for_sampler(2, name="s", ttl_s=ttl_s))) == [(12, "bad_request")]


def test_a_checkpoint_is_public_once_its_file_says_so_and_until_it_does_not() -> None:
    bench = bench_with(checkpoint("a", expires=5000.0))
    for number, public in ((1, True), (2, True), (3, False)):
        (job,) = bench.say(publish(public, 49 + number))
        assert job == StoreJob(number, PublishState(PATH, public))
        assert bench.core._books.catalog.find(PATH, "local").public is (number > 1)
        bench.handle(done(number, result={"path": PATH, "public": public}))
    assert bench.core._books.catalog.find(PATH, "local") == checkpoint("a", expires=5000.0)


def test_a_checkpoint_that_cannot_be_published_stays_private() -> None:
    bench = bench_with(checkpoint("a"))
    bench.say(publish())
    assert told(bench.handle(StoreDone(1, FAILED))) == [(50, "internal")]
    assert not bench.core._books.catalog.find(PATH, "local").public
    assert bench.say(publish(True, 51)) == [StoreJob(2, PublishState(PATH, True))]


def test_what_expires_while_it_is_saved_anew_stays() -> None:
    bench = bench_with(checkpoint("a", expires=1010.0))
    bench.say(save_state(1, "a", overwrite=True))
    assert jobs(bench.tick(11.0)) == []
    bench.finish(path=PATH, size_bytes=5, expires=0.0)
    assert jobs(bench.tick(1.0)) == []
    assert paths(bench) == [PATH]


def test_what_expires_while_its_file_is_changed_goes_afterwards() -> None:
    bench = bench_with(checkpoint("a", expires=1010.0))
    bench.say(expire(60))
    assert jobs(bench.tick(11.0)) == []
    bench.handle(StoreDone(1, FAILED))
    assert jobs(bench.tick(1.0)) == [StoreJob(2, DeleteState(PATH))]


def test_a_saved_time_to_live_is_that_of_the_worker() -> None:
    bench = bench_with()
    bench.say(save_state(1, "a", ttl_s=60))
    bench.finish(path=PATH, size_bytes=5, created=1000.0, expires=1060.0)
    assert jobs(bench.tick(60.0)) == [StoreJob(1, DeleteState(PATH))]


def test_what_expired_while_the_machine_slept_goes_when_it_wakes() -> None:
    bench = bench_with(checkpoint("a", expires=5000.0))
    assert jobs(bench.handle(Tick(wall_offset=3999.0))) == []
    assert jobs(bench.handle(Tick(wall_offset=4000.0))) == [StoreJob(1, DeleteState(PATH))]


def test_an_open_sampler_of_a_deleted_checkpoint_goes_on() -> None:
    bench = bench_with(checkpoint("a"))
    bench.say(create_sampler(2, model_path=PATH))
    bench.finish(base_model="tiny")
    bench.say(delete())
    bench.handle(done(1))
    (action,) = bench.say(Query(request_id=60, what="sampler", subject=f"{RUN[:32]}:sample:0"))
    assert isinstance(action, ToClient)
    assert isinstance(action.header, Reply)
    assert action.header.result["state"] == "open"


def test_a_state_without_optimizer_is_known_to_have_none() -> None:
    bench = bench_with()
    bench.say(save_state(1, "a", include_optimizer=False))
    bench.finish(path=PATH, size_bytes=5)
    load = LoadState(request_id=12, run_id=RUN, seq=2, digest=b"", path=PATH, with_optimizer=True)
    assert told(bench.say(load)) == [(12, "not_found")]


def test_a_session_waits_for_so_many_jobs_only() -> None:
    bench = bench_with(checkpoint("a"), checkpoint("b"), store_jobs=1)
    bench.say(delete())
    refused = bench.say(delete(51, f"weft://{RUN}/weights/b"))
    assert told(refused) == [(51, "busy")]
    bench.handle(done(1))
    assert bench.say(delete(51, f"weft://{RUN}/weights/b")) == [
        StoreJob(2, DeleteState(f"weft://{RUN}/weights/b"))
    ]


def test_a_broker_that_stops_waits_for_the_store() -> None:
    bench = bench_with(checkpoint("a"), checkpoint("b"))
    bench.say(delete())
    bench.handle(StopRequested())
    assert not bench.core.is_finished
    assert told(bench.say(delete(51, f"weft://{RUN}/weights/b"))) == [(51, "stopping")]
    bench.handle(done(1))
    assert bench.core.is_finished
