"""Start `weft serve` as a user would, and look at what it leaves behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HANG_GUARD_S = 60.0  # several times what anything here may take


def free_port() -> int:
    """A port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Served:
    """A running `weft serve`; its stderr is a pipe, or the file descriptor given."""

    def __init__(
        self, model: str, folder: Path, *options: str, stderr: int = subprocess.PIPE
    ) -> None:
        self.address = f"tcp://127.0.0.1:{free_port()}"
        command = [sys.executable, "-P", "-m", "weft.engine", "serve", model]
        command += ["--listen", self.address, "--state", str(folder), *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)

    def wait_until_ready(self) -> None:
        """Return when it says that it serves."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if "serves" not in line:
            raise RuntimeError(f"weft serve said {line!r}, {self.process.communicate()}")

    def children(self) -> list[int]:
        """Process ids of its children."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in path.read_text(encoding="ascii").split()]

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        """Send a signal; returns exit status, stdout and stderr."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=HANG_GUARD_S)
        return self.process.returncode, out, err


@contextmanager
def serving(model: str, folder: Path, *options: str) -> Iterator[Served]:
    """A ready server that is killed at the end if it still runs."""
    served = Served(model, folder, *options)
    try:
        served.wait_until_ready()
        yield served
    finally:
        if served.process.poll() is None:
            served.process.kill()
            served.process.communicate()


def wait_until_gone(pid: int) -> bool:
    """Whether a process ends within the hang guard; a zombie counts as ended."""
    deadline = time.monotonic() + HANG_GUARD_S
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
            state = (
                Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()[0]
            )
        except (ProcessLookupError, FileNotFoundError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)  # there is no event for the end of a process that is not our child
    return False
