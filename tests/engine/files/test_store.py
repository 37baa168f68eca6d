"""The directory of saved states."""

import dataclasses
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from core_bench import RUN, checkpoint
from safetensors.numpy import load, save

from weft.client.errors import BadRequest, Conflict, NotFound
from weft.engine.files.store import CheckpointFiles

RECORD = checkpoint("a")


def filler(value: float = 1.0) -> Callable[[Path, Mapping[str, str]], None]:
    def fill(target: Path, metadata: Mapping[str, str]) -> None:
        target.write_bytes(save({"t": np.full(3, value, np.float32)}, dict(metadata)))

    return fill


@pytest.fixture
def files(tmp_path: Path) -> CheckpointFiles:
    return CheckpointFiles(tmp_path)


def values(files: CheckpointFiles, path: str = RECORD.path) -> list[float]:
    with files.open(path) as (handle, _, _):
        handle.seek(0)
        found: list[float] = load(handle.read())["t"].tolist()
    return found


def names(files: CheckpointFiles) -> list[str]:
    return sorted(path.name for path in files.root.rglob("*") if path.is_file())


def test_what_was_written_is_found(files: CheckpointFiles) -> None:
    size = files.write(RECORD, filler())
    assert files.scan() == [dataclasses.replace(RECORD, size_bytes=size)]
    assert values(files) == [1, 1, 1]


def test_a_taken_name_needs_overwrite(files: CheckpointFiles) -> None:
    files.write(RECORD, filler())
    with pytest.raises(Conflict, match="exists"):
        files.write(RECORD, filler(2))
    files.write(RECORD, filler(3), overwrite=True)
    assert values(files) == [3, 3, 3]


def test_a_write_that_fails_leaves_the_old_state_and_no_rubbish(files: CheckpointFiles) -> None:
    files.write(RECORD, filler())

    def fail(target: Path, metadata: Mapping[str, str]) -> None:
        target.write_bytes(b"half")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        files.write(RECORD, fail, overwrite=True)
    assert names(files) == ["a.safetensors"]
    assert values(files) == [1, 1, 1]


def test_an_open_state_stays_readable_when_it_is_deleted(files: CheckpointFiles) -> None:
    files.write(RECORD, filler())
    with files.open(RECORD.path) as (handle, _, contents):
        files.delete(RECORD.path)
        handle.seek(0)
        assert len(handle.read()) == contents.size
    with pytest.raises(NotFound, match="no checkpoint"), files.open(RECORD.path):
        pass
    files.delete(RECORD.path)


def test_a_renamed_state_has_the_path_of_its_new_name(files: CheckpointFiles) -> None:
    files.write(RECORD, filler())
    renamed = files.rename(RECORD.path, "b")
    assert renamed == f"weft://{RUN}/weights/b"
    assert [record.path for record in files.scan()] == [renamed]


def test_a_rename_never_replaces(files: CheckpointFiles) -> None:
    files.write(RECORD, filler(1))
    files.write(checkpoint("b"), filler(2))
    with pytest.raises(Conflict, match="exists"):
        files.rename(RECORD.path, "b")
    with pytest.raises(NotFound):
        files.rename(f"weft://{RUN}/weights/c", "d")
    assert values(files, checkpoint("b").path) == [2, 2, 2]


def test_an_expiry_is_kept_in_the_file_and_nothing_else_changes(files: CheckpointFiles) -> None:
    size = files.write(RECORD, filler())
    changed = files.amend(RECORD.path, expires=12.5)
    assert files.scan() == [changed]
    assert changed == dataclasses.replace(RECORD, size_bytes=changed.size_bytes, expires=12.5)
    assert abs(changed.size_bytes - size) < 16
    assert values(files) == [1, 1, 1]


def test_a_damaged_state_is_named_and_left_out_of_the_list(files: CheckpointFiles) -> None:
    target = files.file(RECORD.path)
    target.parent.mkdir(parents=True)
    target.write_bytes(bytes(20))
    with pytest.raises(BadRequest, match="damaged"), files.open(RECORD.path):
        pass
    assert files.scan() == []


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "weft://../weights/b",
        f"weft://{RUN}/weights/..",
        f"weft://{RUN}/weights/../../x",
        f"weft://{RUN}/weights/.a.part",
        f"weft://{RUN}/other/a",
    ],
)
def test_a_path_that_leaves_its_place_is_refused(path: str) -> None:
    with pytest.raises(BadRequest):
        CheckpointFiles(Path()).file(path)


def test_the_first_engine_removes_what_was_left_half_done(files: CheckpointFiles) -> None:
    files.write(RECORD, filler())
    rest = files.file(RECORD.path).with_name(".b.safetensors.123.part")
    rest.write_bytes(b"half")
    first = files.claim()
    assert not rest.exists()
    rest.write_bytes(b"another engine writes this")
    second = files.claim()
    assert rest.exists()
    first.release()
    second.release()
    files.claim().release()
    assert names(files) == [".lock", "a.safetensors"]


def test_what_is_kept_is_for_its_owner_alone(tmp_path: Path) -> None:
    files = CheckpointFiles(tmp_path / "state")
    before = os.umask(0)
    try:
        files.claim().release()
        files.write(RECORD, filler())
    finally:
        os.umask(before)
    found = [files.root, *files.root.rglob("*")]
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in found}
    assert modes.pop("a.safetensors") == 0o600
    assert modes.pop(".lock") == 0o666  # it is empty
    assert set(modes.values()) == {0o700}


def test_a_directory_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadRequest, match="cannot hold saved states"):
        CheckpointFiles(tmp_path / "file" / "state").claim()
