"""Start a worker as a process of its own and notice when it ends."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ...client.errors import EngineFailed, WeftError, from_code
from .process import LOAD_FAILED, Assignment
from .threads import worker_environment

STOP_S = 20.0  # from the request to stop until the process is killed


class WorkerProcess:
    """A spawned worker. It dies with this process: its stdin is a pipe that only we hold.

    Args:
        assignment: what it loads and whom it serves.
        on_exit: called once from a thread of ours when the process has ended, with the error that
            explains it, or None after a regular end.
    """

    def __init__(self, assignment: Assignment, on_exit: Callable[[WeftError | None], None]) -> None:
        config = assignment.config
        environment = worker_environment(config.device or "cpu", config.num_threads)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "weft.engine.worker.process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has died, and the watcher says how
            self._process.stdin.write(assignment.to_json() + "\n")
            self._process.stdin.flush()
        self._on_exit = on_exit
        self._watcher = threading.Thread(target=self._watch, name="weft-watch", daemon=True)
        self._watcher.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        """End the process at once, if it has not ended."""
        self._process.kill()

    def join(self, timeout_s: float = STOP_S) -> None:
        """Wait until the process has ended; kill it when it takes too long."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._watcher.join(timeout=STOP_S)

    def _watch(self) -> None:
        assert self._process.stdout is not None
        last = ""
        for line in self._process.stdout:  # read on, so that the pipe never fills
            last = line
        status = self._process.wait()
        self._process.stdout.close()
        if self._process.stdin is not None:
            try:
                self._process.stdin.close()
            except BrokenPipeError:  # it died before it read all
                status = status or 1
        self._on_exit(_explain(status, last))


def _explain(status: int, last_line: str) -> WeftError | None:
    if status == 0:
        return None
    if status == LOAD_FAILED:
        try:
            reason: dict[str, Any] = json.loads(last_line)
            return from_code(str(reason["code"]), str(reason["detail"]))
        except (ValueError, KeyError, TypeError):  # something else wrote to stdout at the end
            return EngineFailed(f"the worker could not load the model; it said {last_line[:200]!r}")
    ending = f"signal {-status}" if status < 0 else f"status {status}"
    return EngineFailed(f"the worker process ended with {ending}")
