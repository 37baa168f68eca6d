"""What `weft serve` and `weft status` show to somebody who sits before a terminal."""

import os
import pty
import select
import subprocess
import sys
from pathlib import Path

from processes import HANG_GUARD_S, Served


def read_all(descriptor: int) -> str:
    """What a terminal was told, until nobody writes to it any more."""
    seen = b""
    while select.select([descriptor], [], [], HANG_GUARD_S)[0]:
        try:
            seen += os.read(descriptor, 4096)
        except OSError:  # the other side is closed
            break
    return seen.decode()


def test_loading_is_shown_and_cleared_and_the_status_is_a_table(
    model_path: str, tmp_path: Path
) -> None:
    master, slave = pty.openpty()
    served = Served(model_path, tmp_path, "--memory-bytes", "1000000000", stderr=slave)
    os.close(slave)
    try:
        served.wait_until_ready()
        command = [sys.executable, "-P", "-m", "weft.engine", "status"]
        command += ["--address", served.address]
        status = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    finally:
        served.process.terminate()
        served.process.communicate(timeout=HANG_GUARD_S)
    seen = read_all(master)
    os.close(master)
    drawn = seen.split("\r")
    # A terminal of no known size has 80 columns.
    assert f"weft: {model_path} is being loaded: "[:76] in seen
    assert drawn[-2].isspace()
    assert drawn[-1] == ""
    assert f"{served.address} is ready, with 1 session" in status.stdout
    assert "worker" in status.stdout
