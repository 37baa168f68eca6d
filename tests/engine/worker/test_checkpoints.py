import dataclasses
from pathlib import Path

import pytest
import torch

from weft.client.errors import BadRequest, Conflict, NotFound
from weft.engine.broker.catalog import Checkpoint
from weft.engine.worker.checkpoints import CheckpointFiles

RECORD = Checkpoint(
    path="weft://00000000000000000000000000000000:train:0/weights/first",
    tenant="local",
    base_model="weft/tiny",
    rank=8,
    alpha=32.0,
    train_attn=True,
    train_mlp=True,
    train_unembed=False,
    step=3,
    size_bytes=0,
    created=1.5,
    user_metadata={"note": "x"},
)


def test_a_state_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    files = CheckpointFiles(tmp_path)
    tensors = {"a": torch.arange(6.0).view(2, 3)}
    size = files.save(RECORD, tensors)
    record, loaded = files.load(RECORD.path)
    assert record == dataclasses.replace(RECORD, size_bytes=size)
    assert torch.equal(loaded["a"], tensors["a"])
    assert files.scan() == [record]


def test_a_taken_name_needs_overwrite(tmp_path: Path) -> None:
    files = CheckpointFiles(tmp_path)
    files.save(RECORD, {"a": torch.zeros(1)})
    with pytest.raises(Conflict, match="exists"):
        files.save(RECORD, {"a": torch.ones(1)})
    files.save(dataclasses.replace(RECORD, step=4), {"a": torch.ones(1)}, overwrite=True)
    assert files.load(RECORD.path)[0].step == 4


def test_a_write_that_fails_half_way_leaves_the_old_state_and_no_rubbish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = CheckpointFiles(tmp_path)
    files.save(RECORD, {"a": torch.zeros(1)})

    def disk_full(handle: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("weft.engine.worker.checkpoints.os.fsync", disk_full)
    with pytest.raises(OSError, match="no space"):
        files.save(RECORD, {"a": torch.ones(1)}, overwrite=True)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["first.safetensors"]
    assert torch.equal(files.load(RECORD.path)[1]["a"], torch.zeros(1))


def test_a_missing_or_damaged_state_is_named(tmp_path: Path) -> None:
    files = CheckpointFiles(tmp_path)
    with pytest.raises(
        NotFound,
        match="no checkpoint weft://00000000000000000000000000000000:train:0/weights/first",
    ):
        files.load(RECORD.path)
    target = files.file(RECORD.path)
    target.parent.mkdir(parents=True)
    target.write_bytes(b"\x00" * 20)
    with pytest.raises(BadRequest, match="damaged"):
        files.load(RECORD.path)
    assert files.scan() == []


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "weft://../weights/b", f"weft://{'0' * 32}:train:0/weights/.."],
)
def test_a_path_that_leaves_its_place_is_refused(path: str) -> None:
    with pytest.raises(BadRequest):
        CheckpointFiles(Path()).file(path)
