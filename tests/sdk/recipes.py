"""Run recipes of the public tinker-cookbook, their code untouched, in processes of their own.

They run in a folder in which the model's name is also the path of its tokenizer, without a network.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serving import Server, surroundings

PACKAGE = "tinker_cookbook.recipes"
HANG_GUARD_S = 150.0  # many times what a recipe takes here


class Recipe:
    """A recipe that runs: `python -m tinker_cookbook.recipes.NAME field=value ...`."""

    def __init__(self, server: Server, home: Path, name: str, **fields: Any) -> None:
        given = {"model_name": "weft/tiny", "renderer_name": "role_colon", **fields}
        command = [sys.executable, "-m", f"{PACKAGE}.{name}"]
        command += [f"{key}={value}" for key, value in given.items()]
        self.log_path = Path(given["log_path"])
        self._said = Path(f"{self.log_path}.said")
        with self._said.open("a") as said:
            self._process = subprocess.Popen(
                command, cwd=home, env=surroundings(server), stdout=said, stderr=subprocess.STDOUT
            )

    def finish(self) -> None:
        """Wait for its end, which must be a good one."""
        try:
            status = self._process.wait(timeout=HANG_GUARD_S)
        finally:
            self.kill()
        assert status == 0, self._said.read_text()[-4000:]

    def kill_when(self, has_come: Callable[[], bool]) -> None:
        """Kill it in mid-run, as soon as its files show so much."""
        deadline = time.monotonic() + HANG_GUARD_S
        try:
            while not has_come():
                assert self._process.poll() is None, self._said.read_text()[-4000:]
                assert time.monotonic() < deadline, self._said.read_text()[-4000:]
                time.sleep(0.02)  # another program's files are all there is to look at
        finally:
            self.kill()

    def kill(self) -> None:
        """Make sure that it has ended, without a word of its own."""
        self._process.kill()
        self._process.wait()

    def metrics(self) -> list[dict[str, Any]]:
        """A row for each step."""
        return _rows(self.log_path / "metrics.jsonl")

    def checkpoints(self) -> list[dict[str, Any]]:
        """A row for each checkpoint."""
        return _rows(self.log_path / "checkpoints.jsonl")


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    whole = path.read_text().rpartition("\n")[0]  # the last line may be half written
    return [json.loads(line) for line in whole.splitlines()]
