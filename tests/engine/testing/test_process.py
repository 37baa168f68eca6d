"""The process of a local twin: its model, its memory, and that it ends with whoever started it."""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from processes import HANG_GUARD_S

from weft.engine.testing.process import memory_bytes, served_name
from weft.engine.worker.model_names import find_model

# The fork outlives its parent and holds whatever pipes that had.
FORKING = """
import os, signal
from weft.engine.testing import local_server
with local_server():
    if os.fork():
        print("ready", flush=True)
    signal.pause()
"""
STARTING = """
from weft.engine.testing import local_server
with local_server():
    raise RuntimeError("it was to be killed before that")
"""


def test_the_name_of_a_directory_is_its_path(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    assert served_name(find_model(str(tmp_path / "link"))) == str(tmp_path)


def test_a_folder_does_not_hide_the_built_in_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weft" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert served_name(find_model("weft/tiny")) == "weft/tiny"


def test_memory_grows_with_the_weights(tmp_path: Path) -> None:
    before = memory_bytes(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    assert memory_bytes(tmp_path) == before + 2000


def test_nothing_outlives_a_program_that_is_killed(tmp_path: Path) -> None:
    with started(FORKING, tmp_path) as (user, mark):
        assert user.stdout is not None
        assert user.stdout.readline() == b"ready\n"
        user.kill()
        assert until(lambda: not running(mark))
    assert list(tmp_path.iterdir()) == []


def test_nothing_outlives_a_program_that_is_killed_while_it_starts(tmp_path: Path) -> None:
    with started(STARTING, tmp_path) as (user, mark):
        assert until(lambda: "weft.engine.worker.process" in running(mark).values())
        user.kill()
        assert until(lambda: not running(mark))
    assert list(tmp_path.iterdir()) == []


@contextmanager
def started(program: str, folder: Path) -> Iterator[tuple["subprocess.Popen[bytes]", str]]:
    """A program whose temporary files lie in `folder`, and a mark of all that descends from it."""
    mark = secrets.token_hex(8)
    environment = {**os.environ, "TMPDIR": str(folder), "WEFT_TEST_MARK": mark}
    command = [sys.executable, "-P", "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as user:
        try:
            yield user, mark
        finally:
            for pid in marked(mark):
                os.kill(pid, signal.SIGKILL)


def marked(mark: str) -> dict[int, list[str]]:
    """The processes that have this mark, with their commands."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"WEFT_TEST_MARK={mark}".encode() in (folder / "environ").read_bytes():
                found[int(folder.name)] = (folder / "cmdline").read_text().split("\0")
        except (OSError, UnicodeDecodeError):  # it has just ended, or is not ours
            continue
    return found


def running(mark: str) -> dict[int, str]:
    """Those that are modules of ours, with their names."""
    commands = marked(mark).items()
    return {pid: words[words.index("-m") + 1] for pid, words in commands if "-m" in words}


def until(condition: Callable[[], bool]) -> bool:
    """Whether something becomes true within the hang guard."""
    deadline = time.monotonic() + HANG_GUARD_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)  # there is no event for a process that is not our child
    return condition()
