"""Keeps a gateway process running: starts it, and starts it again when it dies."""

import json
import logging
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace

from ...client.errors import EngineFailed, WeftError, from_code
from ..restarts import GiveUp, Restarts
from .config import START_FAILED, GatewayConfig

log = logging.getLogger(__name__)

START_S = 60.0
STOP_S = 10.0  # from the request to stop until the process is killed


class GatewayProcess:
    """A gateway in a child process. It ends with this process: its stdin is a pipe that we hold.

    The address that it took at first is the one it listens on after a restart.

    Args:
        config: where it listens and whom it serves.
        log_format: "text" or "json".
        log_level: as `weft serve --log-level`.

    Raises:
        WeftError: it cannot start, and why.
    """

    def __init__(
        self, config: GatewayConfig, *, log_format: str = "text", log_level: str = "warning"
    ) -> None:
        self._config = config
        self._logs = (log_format, log_level)
        self._restarts = Restarts("the gateway")
        self._stopping = threading.Event()
        self.failure: WeftError | None = None  # why there is none any more
        self._process, self.url = self._start()
        port = self.url.rpartition(":")[2]
        host = config.listen.rpartition(":")[0]
        self._config = replace(config, listen=f"{host}:{port}")
        self._watcher = threading.Thread(target=self._watch, name="weft-gateway", daemon=True)
        self._watcher.start()

    @property
    def pid(self) -> int:
        """Process id of the gateway that runs now."""
        return self._process.pid

    def close(self) -> None:
        """End it. Safe to repeat."""
        self._stopping.set()
        _close_stdin(self._process)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._watcher.join(STOP_S)

    def _start(self) -> "tuple[subprocess.Popen[str], str]":
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "weft.engine.gateway.process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        timer = threading.Timer(START_S, process.kill)
        timer.start()
        try:
            with suppress(BrokenPipeError):  # it has died; its status says how
                process.stdin.write(self._config.to_line(*self._logs) + "\n")
                process.stdin.flush()
            line = process.stdout.readline()
        finally:
            timer.cancel()
        said: dict[str, str] = json.loads(line) if line else {}
        if "url" in said:
            return process, said["url"]
        _close_stdin(process)
        status = process.wait()
        process.stdout.close()
        if status == START_FAILED and "code" in said:
            raise from_code(said["code"], said["detail"])
        raise EngineFailed(f"the gateway could not start; it ended with status {status}")

    def _watch(self) -> None:
        while True:
            status = self._process.wait()
            _close_stdin(self._process)
            assert self._process.stdout is not None
            self._process.stdout.close()
            if self._stopping.is_set():
                return
            log.warning("the gateway ended with status %d", status)
            if not self._replace():
                return

    def _replace(self) -> bool:
        """Start another after a pause, until one starts; whether one did."""
        while True:
            verdict = self._restarts.died(time.monotonic())
            if isinstance(verdict, GiveUp):
                self.failure = EngineFailed(verdict.detail)
                return False
            if self._stopping.wait(verdict.after_s):
                return False
            try:
                process, _ = self._start()
            except WeftError as error:
                log.warning("the gateway was not started again: %s", error)
                continue
            self._process = process
            if self._stopping.is_set():  # `close` has seen the old one
                _close_stdin(process)
            return True


def _close_stdin(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.close()
