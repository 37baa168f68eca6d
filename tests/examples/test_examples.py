"""The example programs run as they are, with settings for a few seconds."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from weft.engine import Engine

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SHORT = {
    "distill.py": "--teacher-steps 2 --steps 2 --prompts 4",
    "dpo.py": "--steps 8 --held-out 2",
    "grpo.py": "--steps 3 --prompts 4 --group 4",
    "ppo.py": "--batches 2 --prompts 8 --group 4",
    "sft.py": "--steps 25",
    "sweep.py": "--steps 2 --batch 2",
}
OWN_PACKAGES = {"matplotlib", "numpy", "weft"}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    address = f"ipc://{tmp_path_factory.mktemp('server')}/weft"
    with Engine("weft/tiny", memory_bytes=1 << 30, listen=[address]):
        yield address


def run(program: Path, arguments: str, address: str, folder: Path) -> list[str]:
    """The lines that a program prints; it must not complain."""
    done = subprocess.run(
        [sys.executable, str(program), *arguments.split()],
        cwd=folder,
        env={**os.environ, "WEFT_ADDRESS": address, "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


def numbers(line: str) -> list[float]:
    return [float(found) for found in re.findall(r"[-+]?\d+(?:\.\d+)?", line)]


def test_the_loop_of_the_readme_runs(address: str, tmp_path: Path) -> None:
    program = (EXAMPLES / "rl_loop.py").read_text(encoding="utf-8")
    assert "range(60)" in program
    short = tmp_path / "rl_loop.py"
    short.write_text(program.replace("range(60)", "range(2)"), encoding="utf-8")
    assert "of 128 answers right" in run(short, "", address, tmp_path)[-1]


@pytest.mark.parametrize("name", ["distill.py", "grpo.py", "ppo.py"])
def test_an_example_of_learning_from_samples_runs(name: str, address: str, tmp_path: Path) -> None:
    lines = run(EXAMPLES / name, SHORT[name], address, tmp_path)
    assert re.search(r"right.* \d+% -> \d+%", lines[-1])


def test_supervised_fine_tuning_lowers_the_held_out_loss(address: str, tmp_path: Path) -> None:
    lines = run(EXAMPLES / "sft.py", SHORT["sft.py"], address, tmp_path)
    before, after = numbers(lines[-2].removeprefix("held-out"))
    assert after < before / 2
    assert sum(line.startswith("step ") for line in lines) == 25


def test_preferences_gain_a_margin(address: str, tmp_path: Path) -> None:
    lines = run(EXAMPLES / "dpo.py", SHORT["dpo.py"], address, tmp_path)
    steps = [numbers(line) for line in lines if line.startswith("step ")]
    assert steps[0][2] == pytest.approx(0, abs=0.01)  # forward and custom pass round differently
    assert steps[-1][2] > 0.3


def test_a_sweep_has_sixteen_arms_and_a_plot(address: str, tmp_path: Path) -> None:
    lines = run(EXAMPLES / "sweep.py", SHORT["sweep.py"], address, tmp_path)
    assert lines[0].startswith("16 arms, 2 steps each")
    rows = [numbers(line) for line in lines if line.startswith("rank ")]
    assert [len(row) for row in rows] == [5] * 4
    assert (tmp_path / "sweep.png").stat().st_size > 1000


def test_every_example_is_run() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {*SHORT, "rl_loop.py"}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_short_and_needs_the_client_alone(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 150
    for node in ast.walk(ast.parse(text)):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        for module in modules:
            package = module.split(".")[0]
            assert package in sys.stdlib_module_names or package in OWN_PACKAGES, module
            assert package != "weft" or module == "weft.client"
