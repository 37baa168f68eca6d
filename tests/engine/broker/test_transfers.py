"""Uploads and downloads, as the broker decides on them."""

from typing import Any

import pytest
from adapter_files import SPANS
from core_bench import (
    CARD,
    CLIENT,
    OTHER,
    RUN,
    SESSION,
    CoreBench,
    checkpoint,
    create_run,
    save_state,
    told,
)

from weft.client.file_messages import (
    CloseTransfer,
    DeleteCheckpoint,
    FinishUpload,
    OpenDownload,
    OpenUpload,
    ReadPart,
    WritePart,
)
from weft.client.messages import (
    Array,
    Goodbye,
    Query,
    Reply,
)
from weft.client.worker_messages import WorkerHello, WorkerReady
from weft.engine.broker.events import (
    Action,
    CatalogLoaded,
    StopRequested,
    StoreDone,
    StoreJob,
    ToClient,
)
from weft.engine.files.jobs import (
    ForgetTransfer,
    ImportAdapter,
    JobResult,
    OpenSpace,
    OpenState,
    ReadBytes,
    WriteBytes,
)

PATH = f"weft://{RUN}/weights/a"
UPLOADED = f"weft://{SESSION}:train:5/weights/a"
SIZES = {"adapter_model.safetensors": 25, "adapter_config.json": 7}
OTHER_CLIENT = b"other"
DIGEST = bytes(16)


def bench_with(**settings: Any) -> CoreBench:
    """A bench with a worker that has sites, a checkpoint, and parts of ten bytes."""
    keys = {"": "local", "k": "somebody else"}
    bench = CoreBench(part_bytes=10, tenant_of=keys.get, **settings)
    bench.hello()
    bench.work(WorkerHello(versions=[1], worker_id="w0", secret="", pid=1))
    ready = WorkerReady(model=CARD, train_credit=10**6, sample_credit=10**6, sites=SPANS)
    bench.work(ready)
    bench.handle(CatalogLoaded((checkpoint("a"),)))
    return bench


def open_upload(request_id: int = 1, path: str = UPLOADED, **fields: Any) -> OpenUpload:
    given: dict[str, Any] = {"base_model": "org/tiny", "sizes": SIZES}
    return OpenUpload(request_id=request_id, path=path, **given | fields)


def open_download(request_id: int = 1, path: str = PATH, **fields: Any) -> OpenDownload:
    return OpenDownload(request_id=request_id, path=path, **{"form": "peft"} | fields)


def write(part: int, size: int = 10, request_id: int = 20, transfer_id: int = 1) -> WritePart:
    return WritePart(
        request_id=request_id,
        transfer_id=transfer_id,
        part=part,
        digest=DIGEST,
        arrays=[Array(name="data", dtype="uint8", shape=[size], frame=0)],
    )


def read(part: int, request_id: int = 20) -> ReadPart:
    return ReadPart(request_id=request_id, transfer_id=1, part=part)


def done(number: int, **fields: Any) -> StoreDone:
    return StoreDone(number, JobResult(**fields))


def jobs(actions: list[Action]) -> list[Action]:
    return [action for action in actions if isinstance(action, StoreJob)]


def uploading(**settings: Any) -> CoreBench:
    """A bench with an open upload of 32 bytes, transfer 1; the next job has number 2."""
    bench = bench_with(**settings)
    bench.say(open_upload())
    bench.handle(done(1))
    return bench


def downloading(**settings: Any) -> CoreBench:
    """A bench with an open download of 25 bytes, transfer 1; the next job has number 2."""
    bench = bench_with(**settings)
    bench.say(open_download())
    bench.handle(done(1, result={"files": [["x", 5], ["y", 20]]}))
    return bench


# Uploads.


def test_an_upload_is_opened_in_parts_of_the_servers_size() -> None:
    bench = bench_with()
    assert bench.say(open_upload()) == [StoreJob(1, OpenSpace(1))]
    result = {"transfer_id": 1, "part_bytes": 10}
    assert bench.handle(done(1)) == [ToClient(CLIENT, Reply(request_id=1, result=result))]


def test_a_part_goes_to_the_store_and_is_answered_when_it_is_there() -> None:
    bench = uploading()
    data = b"0123456789"
    assert bench.say(write(1), data) == [StoreJob(2, WriteBytes(1, 10, DIGEST, data))]
    assert bench.handle(done(2)) == [ToClient(CLIENT, Reply(request_id=20))]
    assert bench.say(write(3, 2), b"ab") == [StoreJob(3, WriteBytes(1, 30, DIGEST, b"ab"))]


@pytest.mark.parametrize(
    ("header", "payload", "code"),
    [
        pytest.param(write(4), bytes(10), "bad_request", id="beyond the end"),
        pytest.param(write(-1), bytes(10), "bad_request", id="negative"),
        pytest.param(write(0), bytes(9), "malformed", id="short"),
        pytest.param(write(3), bytes(10), "malformed", id="a long last part"),
        pytest.param(write(0, 9), bytes(10), "malformed", id="described as short"),
        pytest.param(write(0, transfer_id=2), bytes(10), "not_found", id="no such transfer"),
    ],
)
def test_a_part_that_cannot_be_is_refused(header: WritePart, payload: bytes, code: str) -> None:
    bench = uploading()
    actions = bench.say(header, payload)
    assert told(actions) == [(20, code)]
    assert jobs(actions) == []


def test_a_part_that_comes_twice_changes_nothing() -> None:
    bench = uploading()
    finish_parts(bench, range(4))
    bench.say(write(1, request_id=30), bytes(10))
    assert told(bench.handle(done(6))) == [(30, "")]
    assert len(jobs(bench.say(FinishUpload(request_id=3, transfer_id=1)))) == 1


def test_few_parts_are_on_their_way() -> None:
    bench = uploading(parts_in_flight=2)
    bench.say(write(0), bytes(10))
    bench.say(write(1, request_id=21), bytes(10))
    assert told(bench.say(write(2, request_id=22), bytes(10))) == [(22, "busy")]
    bench.handle(done(2))
    assert len(jobs(bench.say(write(2, request_id=22), bytes(10)))) == 1


def finish_parts(bench: CoreBench, parts: range) -> None:
    for number, part in enumerate(parts, 2):
        bench.say(write(part, 2 if part == 3 else 10), bytes(2 if part == 3 else 10))
        bench.handle(done(number))


def test_a_whole_upload_becomes_a_checkpoint() -> None:
    bench = uploading()
    finish_parts(bench, range(4))
    job = ImportAdapter(1, UPLOADED, "local", "tiny", 25, SPANS, False, 0, {})
    assert bench.say(FinishUpload(request_id=3, transfer_id=1)) == [StoreJob(6, job)]
    record = checkpoint("a", path=UPLOADED)
    actions = bench.handle(done(6, result={"path": UPLOADED}, record=record))
    assert actions == [
        StoreJob(7, ForgetTransfer(1)),
        ToClient(CLIENT, Reply(request_id=3, result={"path": UPLOADED})),
    ]
    assert told(bench.say(FinishUpload(request_id=3, transfer_id=1))) == [(3, "")]
    assert len(jobs(bench.say(open_download(4, UPLOADED)))) == 1


def test_an_upload_with_a_hole_is_not_finished() -> None:
    bench = uploading()
    finish_parts(bench, range(1, 4))
    assert told(bench.say(FinishUpload(request_id=3, transfer_id=1))) == [(3, "bad_request")]
    bench.say(write(0), bytes(10))
    bench.handle(done(5))
    assert len(jobs(bench.say(FinishUpload(request_id=4, transfer_id=1)))) == 1


def test_a_part_that_was_damaged_has_not_come() -> None:
    bench = uploading()
    finish_parts(bench, range(3))
    bench.say(write(3, 2), bytes(2))
    assert told(bench.handle(done(5, code="bad_request", detail="digest"))) == [(20, "bad_request")]
    assert told(bench.say(FinishUpload(request_id=3, transfer_id=1))) == [(3, "bad_request")]


def test_an_upload_that_is_refused_is_over() -> None:
    bench = uploading()
    finish_parts(bench, range(4))
    bench.say(FinishUpload(request_id=3, transfer_id=1))
    actions = bench.handle(done(6, code="bad_request", detail="DoRA is not served"))
    assert jobs(actions) == [StoreJob(7, ForgetTransfer(1))]
    assert told(actions) == [(3, "bad_request")]
    assert told(bench.say(write(0), bytes(10))) == [(20, "not_found")]
    assert len(jobs(bench.say(open_upload(5)))) == 1


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        pytest.param({"path": f"weft://{OTHER}:train:0/weights/a"}, "bad_request", id="foreign run"),
        pytest.param({"path": UPLOADED.replace("/weights/", "/sampler_weights/")}, "bad_request", id="kind"),
        pytest.param({"path": UPLOADED + "/../b"}, "bad_request", id="traversal"),
        pytest.param({"path": PATH}, "conflict", id="taken"),
        pytest.param({"base_model": "other"}, "not_found", id="model"),
        pytest.param({"sizes": {**SIZES, "adapter_model.bin": 5}}, "bad_request", id="pickle"),
        pytest.param({"sizes": {"../x": 5}}, "bad_request", id="a name that climbs"),
        pytest.param({"sizes": {"adapter_config.json": 5}}, "bad_request", id="half"),
        pytest.param({"sizes": {**SIZES, "adapter_config.json": -5}}, "bad_request", id="negative"),
        pytest.param({"sizes": {**SIZES, "adapter_config.json": 101}}, "too_large", id="config"),
        pytest.param({"sizes": {**SIZES, "adapter_model.safetensors": 301}}, "too_large", id="size"),
        pytest.param({"ttl_s": -1}, "bad_request", id="ttl"),
    ],
)  # fmt: skip
def test_an_upload_that_cannot_be_is_refused_before_a_byte_of_it(
    fields: dict[str, Any], code: str
) -> None:
    bench = bench_with(upload_bytes=300, config_bytes=100)
    assert told(bench.say(open_upload(**fields))) == [(1, code)]


def test_the_path_of_an_upload_is_taken_from_its_beginning() -> None:
    bench = uploading()
    bench.say(create_run(request_id=4, run_id=f"{SESSION}:train:5"))
    assert told(bench.say(open_upload(5))) == [(5, "conflict")]
    bench.finish(base_model="tiny")
    saved = save_state(1, "a", run_id=f"{SESSION}:train:5")
    assert told(bench.say(saved)) == [(11, "busy")]
    bench.say(CloseTransfer(request_id=6, transfer_id=1))
    assert told(bench.say(saved)) == []


def test_uploads_together_have_a_bound() -> None:
    bench = uploading(total_upload_bytes=60)
    assert told(bench.say(open_upload(5, f"{UPLOADED}b"))) == [(5, "busy")]
    bench.say(CloseTransfer(request_id=6, transfer_id=1))
    assert len(jobs(bench.say(open_upload(5, f"{UPLOADED}b")))) == 1


def test_a_model_that_is_still_loaded_is_waited_for() -> None:
    bench = CoreBench()
    bench.hello()
    assert told(bench.say(open_upload())) == [(1, "busy")]


# Downloads.


def test_a_download_names_its_files() -> None:
    bench = bench_with()
    header = open_download(unembed="separate", base_model="org/b")
    assert bench.say(header) == [StoreJob(1, OpenState(1, PATH, "peft", "separate", "org/b"))]
    result = {"files": [["x", 5], ["y", 20]]}
    expected = {"transfer_id": 1, "part_bytes": 10, **result}
    assert bench.handle(done(1, result=result)) == [
        ToClient(CLIENT, Reply(request_id=1, result=expected))
    ]


@pytest.mark.parametrize("fields", [{"unembed": "omit"}, {"base_model": "org/b"}], ids=str)
def test_a_state_is_sent_as_it_is_or_not_at_all(fields: dict[str, Any]) -> None:
    bench = bench_with()
    assert told(bench.say(open_download(form="state", **fields))) == [(1, "bad_request")]


def test_a_part_is_read_and_sent() -> None:
    bench = downloading()
    assert bench.say(read(2)) == [StoreJob(2, ReadBytes(1, 20, 5))]
    reply = Reply(
        request_id=20,
        result={"digest": DIGEST},
        arrays=[Array(name="data", dtype="uint8", shape=[5], frame=0)],
    )
    assert bench.handle(done(2, result={"digest": DIGEST}, data=b"12345")) == [
        ToClient(CLIENT, reply, (b"12345",))
    ]
    assert told(bench.say(read(3))) == [(20, "bad_request")]


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"form": "zip"}, "bad_request"),
        ({"unembed": "perhaps"}, "bad_request"),
        ({"path": f"weft://{RUN}/weights/b"}, "not_found"),
        ({"path": "/etc/passwd"}, "bad_request"),
    ],
)
def test_a_download_that_cannot_be_is_refused(fields: dict[str, Any], code: str) -> None:
    assert told(bench_with().say(open_download(**fields))) == [(1, code)]


def test_a_download_that_fails_to_open_is_over() -> None:
    bench = bench_with(transfers=1)
    bench.say(open_download())
    actions = bench.handle(done(1, code="bad_request", detail="damaged"))
    assert told(actions) == [(1, "bad_request")]
    assert len(jobs(bench.say(open_download(2)))) == 1


def test_a_download_outlives_its_checkpoint() -> None:
    bench = downloading()
    bench.say(DeleteCheckpoint(request_id=3, path=PATH))
    bench.handle(done(2))
    assert bench.say(read(0)) == [StoreJob(3, ReadBytes(1, 0, 10))]


# Whose they are, and how they end.


def test_foreign_transfers_and_checkpoints_answer_like_unknown_ones() -> None:
    bench = downloading()
    bench.hello(OTHER, OTHER_CLIENT, "k")
    foreign = bench.say(read(0), peer=OTHER_CLIENT)
    assert told(foreign, OTHER_CLIENT) == [(20, "not_found")]
    assert jobs(bench.say(CloseTransfer(request_id=5, transfer_id=1), peer=OTHER_CLIENT)) == []
    refused = bench.say(open_download(), peer=OTHER_CLIENT)
    assert told(refused, OTHER_CLIENT) == [(1, "not_found")]
    bench.say(CloseTransfer(request_id=6, transfer_id=1))
    assert bench.say(read(0), peer=OTHER_CLIENT) == foreign


def test_the_other_session_of_a_tenant_has_transfers_of_its_own() -> None:
    bench = downloading()
    bench.hello(OTHER, OTHER_CLIENT)
    assert told(bench.say(read(0), peer=OTHER_CLIENT), OTHER_CLIENT) == [(20, "not_found")]
    assert len(jobs(bench.say(open_download(), peer=OTHER_CLIENT))) == 1


def test_sessions_and_the_server_have_so_many_transfers() -> None:
    bench = downloading(transfers=1, total_transfers=1)
    assert told(bench.say(open_download(2))) == [(2, "busy")]
    bench.hello(OTHER, OTHER_CLIENT)
    assert told(bench.say(open_download(), peer=OTHER_CLIENT), OTHER_CLIENT) == [(1, "busy")]
    assert StoreJob(2, ForgetTransfer(1)) in bench.say(CloseTransfer(request_id=3, transfer_id=1))
    assert len(jobs(bench.say(open_download(2)))) == 1


def test_a_client_that_vanishes_is_forgotten() -> None:
    bench = uploading(transfer_expiry_s=30.0)
    bench.say(write(0), bytes(10))
    assert jobs(bench.tick(31.0)) == []
    bench.handle(done(2))
    assert jobs(bench.tick(29.0)) == []
    assert jobs(bench.tick(1.0)) == [StoreJob(3, ForgetTransfer(1))]
    assert told(bench.say(write(1), bytes(10))) == [(20, "not_found")]


def test_a_session_takes_its_transfers_along() -> None:
    bench = uploading()
    assert jobs(bench.say(Goodbye())) == [StoreJob(2, ForgetTransfer(1))]


def test_what_is_being_finished_is_kept_though_its_session_ends() -> None:
    bench = uploading()
    finish_parts(bench, range(4))
    bench.say(FinishUpload(request_id=3, transfer_id=1))
    assert jobs(bench.say(Goodbye())) == []
    bench.handle(done(6, result={"path": UPLOADED}, record=checkpoint("a", path=UPLOADED)))
    bench.hello(OTHER, OTHER_CLIENT)
    (action,) = bench.say(Query(request_id=9, what="checkpoints"), peer=OTHER_CLIENT)
    assert isinstance(action, ToClient)
    assert isinstance(action.header, Reply)
    assert len(action.header.result["checkpoints"]) == 2


def test_a_server_that_stops_takes_no_more_parts() -> None:
    bench = uploading()
    bench.say(write(0), bytes(10))
    bench.handle(StopRequested())
    assert told(bench.say(write(1, request_id=21), bytes(10))) == [(21, "stopping")]
    bench.handle(done(2))
    assert bench.core.is_finished


def test_an_upload_is_no_download() -> None:
    assert told(uploading().say(read(0))) == [(20, "conflict")]
    assert told(downloading().say(write(0), bytes(10))) == [(20, "conflict")]
