import queue
import sys
from pathlib import Path

import pytest

from weft.client.errors import BadRequest, EngineFailed, WeftError
from weft.engine.worker.config import WorkerConfig
from weft.engine.worker.launch import WorkerProcess, _explain
from weft.engine.worker.process import LOAD_FAILED, Assignment

HANG_GUARD_S = 10.0


def test_a_regular_end_needs_no_explanation() -> None:
    assert _explain(0, "whatever\n") is None


def test_the_reason_of_a_failed_load_keeps_its_code() -> None:
    error = _explain(LOAD_FAILED, '{"code": "too_large", "detail": "16.4 GB"}\n')
    assert isinstance(error, BadRequest)
    assert (error.code, str(error)) == ("too_large", "16.4 GB")


@pytest.mark.parametrize("line", ["", "bye\n", "3\n", "{}\n"])
def test_a_failed_load_without_a_reason_is_explained_all_the_same(line: str) -> None:
    assert isinstance(_explain(LOAD_FAILED, line), EngineFailed)


def test_a_signal_is_named() -> None:
    assert "signal 9" in str(_explain(-9, ""))


def test_a_process_that_dies_before_it_is_told_anything_ends_like_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nexit 7\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    config = WorkerConfig(model="more than a pipe holds" * 10_000, state_dir="")
    ended: queue.SimpleQueue[WeftError | None] = queue.SimpleQueue()
    process = WorkerProcess(Assignment(config, "ipc://nowhere", "w0", "secret"), ended.put)
    assert "status 7" in str(ended.get(timeout=HANG_GUARD_S))
    process.join()
