"""States with tensors, on disk."""

import dataclasses
from pathlib import Path

import pytest
import torch

from weft.client.errors import BadRequest, NotFound
from weft.engine.files.checkpoint import Checkpoint
from weft.engine.files.store import CheckpointFiles
from weft.engine.worker.checkpoints import load_tensors, save_tensors

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
    size = save_tensors(files, RECORD, tensors)
    record, loaded = load_tensors(files, RECORD.path)
    assert dataclasses.replace(record, size_bytes=0) == RECORD
    assert torch.equal(loaded["a"], tensors["a"])
    assert files.scan() == [dataclasses.replace(RECORD, size_bytes=size)]


def test_a_missing_or_damaged_state_is_named(tmp_path: Path) -> None:
    files = CheckpointFiles(tmp_path)
    with pytest.raises(NotFound, match=f"no checkpoint {RECORD.path}"):
        load_tensors(files, RECORD.path)
    target = files.file(RECORD.path)
    target.parent.mkdir(parents=True)
    target.write_bytes(b"\x00" * 20)
    with pytest.raises(BadRequest, match="damaged"):
        load_tensors(files, RECORD.path)
