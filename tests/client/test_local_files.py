"""Files on the caller's machine."""

import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from weft.client import local_files
from weft.client.errors import BadRequest, EngineFailed
from weft.client.local_files import CONFIG_NAME, TENSORS_NAME, Adapter, write_archive, write_folder

FILES = [(CONFIG_NAME, 3), (f"unembed/{TENSORS_NAME}", 5)]
DATA = b"abc12345"


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_files_of_a_download_are_written_into_a_folder(tmp_path: Path) -> None:
    assert write_folder(tmp_path / "a", FILES, BytesIO(DATA).read, False) == tmp_path / "a"
    assert names(tmp_path) == [f"a/{CONFIG_NAME}", f"a/unembed/{TENSORS_NAME}"]
    assert (tmp_path / "a" / "unembed" / TENSORS_NAME).read_bytes() == b"12345"


def test_an_archive_has_the_files_as_members(tmp_path: Path) -> None:
    target = write_archive(tmp_path / "a.tar", FILES, BytesIO(DATA).read, False)
    with tarfile.open(target) as archive:
        found = {one.name: archive.extractfile(one).read() for one in archive}  # type: ignore[union-attr]
    assert found == {CONFIG_NAME: b"abc", f"unembed/{TENSORS_NAME}": b"12345"}


@pytest.mark.parametrize("write", [write_folder, write_archive])
def test_a_download_that_breaks_off_leaves_nothing(tmp_path: Path, write: object) -> None:
    with pytest.raises(EngineFailed, match="ended 2 bytes too early"):
        write(tmp_path / "a", FILES, BytesIO(DATA[:-2]).read, False)  # type: ignore[operator]
    assert names(tmp_path) == []


def test_what_is_there_is_not_replaced_unless_asked(tmp_path: Path) -> None:
    write_folder(tmp_path, FILES[:1], BytesIO(b"old").read, False)
    with pytest.raises(BadRequest, match="exists; pass overwrite=True"):
        write_folder(tmp_path, FILES, BytesIO(DATA).read, False)
    assert names(tmp_path) == [CONFIG_NAME]
    write_folder(tmp_path, FILES, BytesIO(DATA).read, True)
    assert (tmp_path / CONFIG_NAME).read_bytes() == b"abc"


@pytest.mark.parametrize(
    ("place", "message"),
    [
        pytest.param("", "directory is '', not a path", id="empty"),
        pytest.param(None, "directory is None", id="none"),
        pytest.param("/dev/null", "/dev/null cannot be a directory", id="file"),
        pytest.param("/dev/null/below", "below cannot be a directory", id="below a file"),
    ],
)
def test_a_place_that_takes_no_files_is_refused(place: Any, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        write_folder(place, FILES, BytesIO(DATA).read, False)


def test_two_downloads_to_one_place_are_not_mixed(tmp_path: Path) -> None:
    first, files = BytesIO(b"the first"), [(CONFIG_NAME, 9)]

    def read(size: int) -> bytes:
        write_folder(tmp_path, files, BytesIO(b"the other").read, True)
        return first.read(size)

    write_folder(tmp_path, files, read, True)
    assert (tmp_path / CONFIG_NAME).read_bytes() == b"the first"
    assert names(tmp_path) == [CONFIG_NAME]


@pytest.mark.parametrize("name", ["../../.ssh/authorized_keys", "/etc/passwd", "other.json"])
def test_a_server_does_not_choose_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(EngineFailed, match="the server sends a file"):
        write_folder(tmp_path, [(name, 3)], BytesIO(b"abc").read, True)
    assert names(tmp_path) == []


def save(folder: Path, *files: str) -> Path:
    for name in files:
        (folder / name).write_bytes(name.encode())
    return folder


def test_both_files_of_an_adapter_are_read_as_one_stream(tmp_path: Path) -> None:
    with Adapter(save(tmp_path, CONFIG_NAME, TENSORS_NAME, "README.md")) as adapter:
        assert adapter.sizes == {TENSORS_NAME: len(TENSORS_NAME), CONFIG_NAME: len(CONFIG_NAME)}
        assert adapter.read(30) == (TENSORS_NAME + CONFIG_NAME)[:30].encode()
        assert adapter.read(99) == (TENSORS_NAME + CONFIG_NAME)[30:].encode()
        assert adapter.read(1) == b""


def test_bytes_may_be_given_instead() -> None:
    with Adapter({CONFIG_NAME: b"c", TENSORS_NAME: b"tt"}) as adapter:
        assert adapter.read(9) == b"ttc"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ((CONFIG_NAME,), f"lacks {TENSORS_NAME}"),
        ((TENSORS_NAME,), f"lacks {CONFIG_NAME}"),
        ((CONFIG_NAME, "adapter_model.bin"), "adapter_model.bin, which is pickled"),
    ],
)
def test_a_folder_that_is_no_adapter_is_refused(
    tmp_path: Path, files: tuple[str, ...], message: str
) -> None:
    with pytest.raises(BadRequest, match=message):
        Adapter(save(tmp_path, *files))
    with pytest.raises(BadRequest, match=message):
        Adapter(dict.fromkeys(files, b"x"))


def test_what_is_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="is no directory"):
        Adapter(tmp_path / "missing")
    with pytest.raises(BadRequest, match=r"'adapter_model\.bin' is not taken"):
        Adapter({CONFIG_NAME: b"c", TENSORS_NAME: b"t", "adapter_model.bin": b""})
    with pytest.raises(BadRequest, match="'x' is not taken"):
        Adapter({CONFIG_NAME: b"c", TENSORS_NAME: b"t", "x": b""})


def test_a_file_beyond_its_limit_is_refused_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_files, "limit", lambda name: {"upload_bytes": 3}.get(name, 9))
    with pytest.raises(BadRequest, match="has 4 bytes, at most 3") as error:
        Adapter({CONFIG_NAME: b"c", TENSORS_NAME: b"tttt"})
    assert error.value.code == "too_large"
