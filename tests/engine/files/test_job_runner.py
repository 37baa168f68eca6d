"""Jobs on files: what each does to the directory, and what it leaves when it fails."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapter_files import SPANS, key, make_adapter, make_tensors
from core_bench import RUN, checkpoint
from safetensors.numpy import load, save

from weft.client.errors import BadRequest, Conflict, NotFound
from weft.client.wire import digest_bytes
from weft.engine.files.job_runner import JobRunner
from weft.engine.files.jobs import (
    CopyState,
    DeleteState,
    ExpireState,
    ForgetTransfer,
    ImportAdapter,
    JobResult,
    OpenSpace,
    OpenState,
    PublishState,
    ReadBytes,
    RenameState,
    WriteBytes,
)
from weft.engine.files.store import CheckpointFiles

PATH = f"weft://{RUN}/weights/a"
Q0 = "model.layers.0.self_attn.q_proj"


class Bench:
    """A runner on a directory."""

    def __init__(self, root: Path) -> None:
        self.files = CheckpointFiles(root)
        self.runner = JobRunner(self.files)

    def upload(self, adapter: dict[str, bytes], **fields: Any) -> JobResult:
        self.runner.carry_out(OpenSpace(7))
        data = adapter["adapter_model.safetensors"] + adapter["adapter_config.json"]
        for offset in [*range(64, len(data), 64), 0]:
            part = data[offset : offset + 64]
            self.runner.carry_out(WriteBytes(7, offset, digest_bytes(part), part))
        given: dict[str, Any] = {
            "tenant": "local",
            "base_model": "tiny",
            "spans": SPANS,
            "ignore_dropout": False,
            "ttl_s": 0,
            "user_metadata": {"k": "v"},
        }
        size = len(adapter["adapter_model.safetensors"])
        job = ImportAdapter(transfer_id=7, path=PATH, tensor_bytes=size, **given | fields)
        return self.runner.carry_out(job)

    def names(self) -> list[str]:
        return sorted(path.name for path in self.files.root.rglob("*") if path.is_file())


@pytest.fixture
def bench(tmp_path: Path) -> Any:
    made = Bench(tmp_path / "state")
    yield made
    made.runner.close()


def test_an_upload_becomes_a_state(bench: Bench) -> None:
    result = bench.upload(make_adapter())
    assert bench.files.scan() == [result.record]
    record = result.record
    assert record is not None
    assert (record.rank, record.alpha, record.base_model) == (2, 8.0, "tiny")
    assert (record.train_attn, record.train_mlp, record.train_unembed) == (True, False, False)
    assert (record.has_optimizer, record.step, record.expires) == (False, 0, 0.0)
    found = load(bench.files.file(PATH).read_bytes())
    tensors = make_tensors()
    assert found[f"{Q0}.lora_a"].tobytes() == tensors[key(Q0, "A")].tobytes()
    assert not found["model.layers.1.self_attn.o_proj.lora_a"].any()


def test_a_time_to_live_begins_with_the_import(bench: Bench) -> None:
    record = bench.upload(make_adapter(), ttl_s=60).record
    assert record is not None
    assert record.expires == record.created + 60


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        pytest.param(make_adapter(use_dora=True), "DoRA", id="config"),
        pytest.param(
            {**make_adapter(), "adapter_model.safetensors": b"\x80\x02}q\x00." * 9},
            "adapter_model.safetensors: not a safetensors file",
            id="pickle",
        ),
        pytest.param(
            make_adapter({**make_tensors(), key(Q0, "A"): np.full((2, 6), np.nan, np.float32)}),
            "not finite",
            id="nan",
        ),
    ],
)
def test_an_upload_that_is_refused_leaves_nothing(
    bench: Bench, adapter: dict[str, bytes], message: str
) -> None:
    with pytest.raises(BadRequest, match=message):
        bench.upload(adapter)
    bench.runner.carry_out(ForgetTransfer(7))
    assert bench.names() == []


def test_a_damaged_part_is_refused(bench: Bench) -> None:
    bench.runner.carry_out(OpenSpace(1))
    with pytest.raises(BadRequest, match="from 64 on do not have their digest"):
        bench.runner.carry_out(WriteBytes(1, 64, digest_bytes(b"other"), b"these"))


def test_an_upload_has_no_name_on_disk(bench: Bench) -> None:
    bench.runner.carry_out(OpenSpace(1))
    bench.runner.carry_out(WriteBytes(1, 0, digest_bytes(b"x"), b"x"))
    assert bench.names() == []


def test_a_state_is_read_on_while_it_is_deleted(bench: Bench) -> None:
    bench.upload(make_adapter())
    raw = bench.files.file(PATH).read_bytes()
    opened = bench.runner.carry_out(OpenState(2, PATH, "state", "include", ""))
    assert opened.result == {"files": [["state.safetensors", len(raw)]]}
    bench.runner.carry_out(DeleteState(PATH))
    read = bench.runner.carry_out(ReadBytes(2, 3, 50))
    assert (read.data, read.result) == (raw[3:53], {"digest": digest_bytes(raw[3:53])})
    bench.runner.carry_out(ForgetTransfer(2))
    with pytest.raises(NotFound, match="no transfer 2"):
        bench.runner.carry_out(ReadBytes(2, 0, 1))


def test_what_was_imported_is_exported_as_it_came(bench: Bench) -> None:
    modules = tuple(f"self_attn.{name}_proj" for name in "qvo")
    bench.upload(make_adapter(make_tensors(modules), target_modules=["q_proj", "v_proj", "o_proj"]))
    opened = bench.runner.carry_out(OpenState(2, PATH, "peft", "include", ""))
    (_, config_size), (_, size) = opened.result["files"]
    data = bench.runner.carry_out(ReadBytes(2, config_size, size)).data
    found = {name: array.tobytes() for name, array in load(data).items()}
    assert found == {name: array.tobytes() for name, array in make_tensors(modules).items()}


def test_names_and_times_change_in_place(bench: Bench) -> None:
    bench.upload(make_adapter())
    assert bench.runner.carry_out(RenameState(PATH, "b")).result["path"].endswith("/weights/b")
    bench.runner.carry_out(ExpireState(f"weft://{RUN}/weights/b", 5.0))
    (record,) = bench.files.scan()
    assert (record.path, record.expires) == (f"weft://{RUN}/weights/b", 5.0)


def test_who_may_read_a_state_is_kept_in_its_file(bench: Bench) -> None:
    bench.upload(make_adapter(), ttl_s=60)
    tensors = load(bench.files.file(PATH).read_bytes())
    for public in (True, False):
        result = bench.runner.carry_out(PublishState(PATH, public))
        assert result.result == {"path": PATH, "public": public}
        assert bench.files.scan() == [result.record]
        assert result.record is not None
        assert (result.record.public, result.record.expires > 0) == (public, True)
    found = load(bench.files.file(PATH).read_bytes())
    assert {name: a.tobytes() for name, a in found.items()} == {
        name: a.tobytes() for name, a in tensors.items()
    }


def test_a_state_is_sent_to_others_without_its_owner_and_notes(bench: Bench) -> None:
    bench.upload(make_adapter(), tenant="local-1234", user_metadata={"secret": "note"})
    bench.runner.carry_out(PublishState(PATH, True))
    opened = bench.runner.carry_out(OpenState(2, PATH, "state", "include", "", False))
    ((_, size),) = opened.result["files"]
    data = bench.runner.carry_out(ReadBytes(2, 0, size)).data
    assert b"local-1234" not in data
    assert b"secret" not in data
    kept = load(bench.files.file(PATH).read_bytes())
    assert {name: a.tobytes() for name, a in load(data).items()} == {
        name: a.tobytes() for name, a in kept.items()
    }
    assert b'\\"rank\\": 2' in data


def test_a_copy_is_its_owners_own_and_the_source_stays(bench: Bench) -> None:
    source = bench.upload(make_adapter(), ttl_s=60).record
    bench.runner.carry_out(PublishState(PATH, True))
    target = f"weft://{RUN[:-1]}9/weights/b"
    copied = bench.runner.carry_out(CopyState(PATH, target, "somebody", 0, {"a": "b"}))
    copy, original = copied.record, bench.files.record(PATH)
    assert copy is not None
    assert source is not None
    assert copied.result == {"path": target, "size_bytes": copy.size_bytes}
    assert (copy.tenant, copy.public, copy.expires) == ("somebody", False, 0.0)
    assert (copy.user_metadata, copy.rank, copy.created >= source.created) == ({"a": "b"}, 2, True)
    assert (original.tenant, original.public, original.expires) == ("local", True, source.expires)
    found, kept = (load(bench.files.file(path).read_bytes()) for path in (target, PATH))
    assert {name: a.tobytes() for name, a in found.items()} == {
        name: a.tobytes() for name, a in kept.items()
    }


def test_a_copy_has_a_time_of_its_own_and_never_replaces(bench: Bench) -> None:
    bench.upload(make_adapter())
    target = f"weft://{RUN}/weights/b"
    copy = bench.runner.carry_out(CopyState(PATH, target, "local", 60, {})).record
    assert copy is not None
    assert copy.expires == copy.created + 60
    with pytest.raises(Conflict, match="exists"):
        bench.runner.carry_out(CopyState(PATH, target, "local", 0, {}))
    with pytest.raises(NotFound):
        bench.runner.carry_out(CopyState(f"weft://{RUN}/weights/x", target + "2", "local", 0, {}))
    assert len(bench.names()) == 2


def test_what_was_saved_anew_and_privately_is_not_read_by_others(bench: Bench) -> None:
    bench.upload(make_adapter())  # the broker has looked at a public one of this name before
    target = f"weft://{RUN}/weights/b"
    for job in (
        OpenState(2, PATH, "peft", "include", "", is_own=False),
        CopyState(PATH, target, "somebody", 0, {}),
    ):
        with pytest.raises(NotFound, match=f"no checkpoint {PATH}"):
            bench.runner.carry_out(job)
    assert [record.path for record in bench.files.scan()] == [PATH]


def test_the_size_of_external_weights_is_that_of_their_adapter(bench: Bench) -> None:
    bench.upload(make_adapter())
    external = f"weft://{RUN}/external_weights/a"
    bench.files.file(external).parent.mkdir(parents=True)
    bench.files.file(PATH).rename(bench.files.file(external))
    opened = bench.runner.carry_out(OpenState(2, external, "peft", "include", ""))
    (record,) = bench.files.scan()
    assert record.size_bytes == sum(size for _, size in opened.result["files"])
    assert record.size_bytes != bench.files.file(external).stat().st_size


def test_a_state_that_is_cut_short_is_not_sent(bench: Bench) -> None:
    target = bench.files.file(checkpoint("a").path)
    target.parent.mkdir(parents=True)
    target.write_bytes(save({"t": np.zeros(9, np.float32)}, checkpoint("a").to_metadata())[:-4])
    with pytest.raises(BadRequest, match="damaged"):
        bench.runner.carry_out(OpenState(1, PATH, "state", "include", ""))
