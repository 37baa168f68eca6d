"""What runs on a GPU: that it skips without one, and that all of it works where it can be tried."""

import json
import os
import subprocess
import sys
from pathlib import Path

import gpu
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "bench"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(BENCH)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_device_they_say_so_and_succeed() -> None:
    scripts = [str(BENCH / f"{name}.py") for name in ("kernels", "gpu_train", "gpu_sample", "gpu")]
    together = (
        "import runpy, sys; scripts, sys.argv = sys.argv[1:], sys.argv[:1];"
        "[runpy.run_path(script, run_name='__main__') for script in scripts]"
    )
    done = run("-c", together, *scripts)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.startswith("skipped: ") for line in lines] == [True] * len(scripts)


@pytest.mark.parametrize("part", ["linears", "decode", "optimizer"])
def test_rows_of_kernels_are_computed_and_checked(part: str) -> None:
    done = run("bench/kernels.py", "--dry-run", "--only", part)
    assert done.returncode == 0, done.stderr
    first, _, *rows = done.stdout.splitlines()
    assert first == "dry run"
    assert rows


@pytest.mark.parametrize("script", ["gpu_train.py", "gpu_sample.py"])
def test_rows_of_whole_models_are_measured(script: str) -> None:
    done = run(f"bench/{script}", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("tiny") >= 3


def test_a_part_that_fails_fails_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "run", lambda command, limit_s: command[0] != "bench/gpu_train.py")
    for parts, status in ((("train", "sample"), 1), (("sample",), 0)):
        options = [option for part in parts for option in ("--part", part)]
        monkeypatch.setattr(sys, "argv", ["gpu.py", "--dry-run", *options])
        assert gpu.main() == status
    found = capsys.readouterr().out
    assert "train: FAILED" in found
    assert "sample: passed" in found


def test_a_part_that_does_not_end_is_stopped() -> None:
    assert gpu.run(["-c", "print(1)"], 60)
    assert not gpu.run(["-c", "import time; time.sleep(60)"], 1)


def test_parts_end_within_their_time() -> None:
    assert max(gpu.LIMITS.values()) <= 8
    assert sum(gpu.LIMITS.values()) < 25


def test_kernels_count_when_a_test_that_launched_them_passed(tmp_path: Path) -> None:
    tests = tmp_path / "test_two.py"
    tests.write_text(
        "import torch\n"
        "from weft.kernels.gpu.optimizer import norms\n"
        "def test_good(): assert norms([torch.ones(16)]).item() == 4\n"
        "def test_bad(): assert not norms([torch.ones(16)])\n",
        encoding="utf-8",
    )
    for name, expected in (("good", ["_norms_kernel", "_partials_kernel"]), ("bad", [])):
        plugin = ("-p", "launched_kernels", "--launched-kernels", str(tmp_path))
        done = run("-m", "pytest", "-q", *plugin, f"{tests}::test_{name}")
        found = json.loads((tmp_path / "main.json").read_text(encoding="utf-8"))
        assert found == expected, done.stdout
