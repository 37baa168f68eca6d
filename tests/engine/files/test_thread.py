"""The thread that does jobs."""

import queue
from pathlib import Path

import pytest
from core_bench import RUN

from weft.client import wire
from weft.client.messages import Failure
from weft.client.wire import digest_bytes
from weft.engine.files.jobs import (
    DeleteState,
    ImportAdapter,
    JobResult,
    OpenSpace,
    OpenState,
    WriteBytes,
)
from weft.engine.files.store import CheckpointFiles
from weft.engine.files.thread import StoreThread

PATH = f"weft://{RUN}/weights/a"
DEADLINE_S = 20  # a hang guard

Done = queue.SimpleQueue[tuple[int, JobResult]]


def test_jobs_are_answered_in_order_whether_they_fail_or_not(tmp_path: Path) -> None:
    done: Done = queue.SimpleQueue()
    thread = StoreThread(CheckpointFiles(tmp_path), lambda *item: done.put(item))
    thread.submit(1, OpenState(1, PATH, "state", "include", ""))
    thread.submit(2, DeleteState(PATH))
    thread.start()
    assert done.get(timeout=DEADLINE_S) == (
        1,
        JobResult(code="not_found", detail=f"no checkpoint {PATH}"),
    )
    assert done.get(timeout=DEADLINE_S) == (2, JobResult())
    thread.stop()


def test_a_fault_of_the_disk_is_an_answer_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(files: CheckpointFiles, path: str) -> None:
        raise OSError("input/output error")

    monkeypatch.setattr(CheckpointFiles, "delete", fail)
    done: Done = queue.SimpleQueue()
    thread = StoreThread(CheckpointFiles(tmp_path), lambda *item: done.put(item))
    thread.start()
    thread.submit(1, DeleteState(PATH))
    _, result = done.get(timeout=DEADLINE_S)
    assert (result.code, result.detail) == ("internal", "OSError: input/output error")
    thread.stop()


def test_whatever_an_upload_is_called_its_error_can_be_sent(tmp_path: Path) -> None:
    key = "\\ud800" + "x" * 100_000
    data = f'{{"{key}": 1}}'.encode()
    done: Done = queue.SimpleQueue()
    thread = StoreThread(CheckpointFiles(tmp_path), lambda *item: done.put(item))
    thread.submit(1, OpenSpace(1))
    thread.submit(2, WriteBytes(1, 0, digest_bytes(data), data))
    thread.submit(3, ImportAdapter(1, PATH, "local", "tiny", 0, [], False, 0, {}))
    thread.start()
    results = [done.get(timeout=DEADLINE_S)[1] for _ in range(3)]
    thread.stop()
    assert results[2].code == "bad_request"
    failure = Failure(request_id=1, code="bad_request", detail=results[2].detail)
    assert wire.decode(wire.encode(failure)) == failure


def test_a_server_without_a_directory_says_so() -> None:
    done: Done = queue.SimpleQueue()
    thread = StoreThread(None, lambda *item: done.put(item))
    thread.start()
    thread.submit(1, DeleteState(PATH))
    assert done.get(timeout=DEADLINE_S)[1].code == "not_found"
    thread.stop()
