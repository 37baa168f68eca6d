"""Start `weft serve` with Weft's own environment, and programs of the SDK's environment beside it."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WEFT = Path(os.environ.get("WEFT", ROOT / ".venv" / "bin" / "weft"))
KEY = "tml-any"  # a server without keys takes every one; the SDK wants this beginning
START_S = 90.0  # many times what a start takes


@dataclass(frozen=True)
class Server:
    """A running server."""

    url: str
    folder: Path
    process: subprocess.Popen[str]
    key: str = KEY

    @property
    def log(self) -> str:
        """What it has written to its stderr."""
        return (self.folder / "log").read_text()


@contextmanager
def start(folder: Path, *options: str) -> Iterator[Server]:
    """A server of weft/tiny with a state directory of its own; ended by its process id."""
    command = [str(ROOT / WEFT), "-v", "serve", "weft/tiny", "--http", "127.0.0.1:0"]
    command += ["--listen", f"ipc://{folder}/broker", "--state", str(folder / "state"), *options]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        yield Server(_wait_for_address(process, folder), folder, process)
    finally:
        process.terminate()
        try:
            process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def _wait_for_address(process: subprocess.Popen[str], folder: Path) -> str:
    assert process.stdout is not None
    guard = threading.Timer(START_S, process.kill)
    guard.start()
    said = ""
    for line in process.stdout:
        said += line
        if found := re.search(r"http://127\.0\.0\.1:\d+", line):
            guard.cancel()
            return found.group()
    raise RuntimeError(f"weft serve ended: {said}{(folder / 'log').read_text()}")


def script(name: str) -> str:
    """The path of a program of the SDK's environment."""
    return str(Path(sys.executable).parent / name)


def surroundings(server: Server) -> dict[str, str]:
    """Variables with which a program finds the server, and no other machine."""
    nowhere = "http://127.0.0.1:9"  # the discard port: connections are refused at once
    return {
        **os.environ,
        "TINKER_BASE_URL": server.url,
        "TINKER_API_KEY": server.key,
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), nowhere),
        **dict.fromkeys(("no_proxy", "NO_PROXY"), "127.0.0.1,localhost"),
    }
