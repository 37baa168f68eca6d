"""The example programs run as they are, but for fewer steps."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from weft.engine import Engine

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    address = f"ipc://{tmp_path_factory.mktemp('server')}/weft"
    with Engine("weft/tiny", memory_bytes=1 << 30, listen=[address]):
        yield address


@pytest.mark.parametrize(
    ("name", "last_line"), [("rl_loop.py", "of 128 answers right"), ("sft.py", "warp ->")]
)
def test_an_example_runs(name: str, last_line: str, address: str, tmp_path: Path) -> None:
    program = (EXAMPLES / name).read_text()
    assert "range(60)" in program
    short = tmp_path / name
    short.write_text(program.replace("range(60)", "range(2)"))
    done = subprocess.run(
        [sys.executable, str(short)],
        env={**os.environ, "WEFT_ADDRESS": address},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert last_line in done.stdout.splitlines()[-1]
    assert done.stderr == ""
