"""Where the engine puts the socket of its worker."""

import os
import tempfile
from pathlib import Path

import pytest
import zmq

from weft.client.errors import BadRequest
from weft.engine import embedded
from weft.engine.embedded import socket_folder


def test_a_socket_lies_in_the_temporary_folder_when_its_path_is_short(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with tempfile.TemporaryDirectory(prefix="w", dir="/tmp") as short:
        monkeypatch.setattr(tempfile, "tempdir", short)
        with socket_folder() as folder:
            assert Path(folder).parent == Path(short)


def test_a_long_temporary_folder_is_left_for_a_short_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with socket_folder() as folder:
        assert len(os.fsencode(f"{folder}/worker")) <= zmq.IPC_PATH_MAX_LEN
        assert os.stat(folder).st_mode & 0o077 == 0


def test_without_any_short_folder_the_user_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    monkeypatch.setattr(embedded, "SHORT_FOLDER", str(tmp_path / "absent"))
    with pytest.raises(BadRequest, match="set TMPDIR to a shorter path"):
        socket_folder()
