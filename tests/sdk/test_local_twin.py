"""The sample project for a local twin, in an environment that has the SDK and Weft, as its users do."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from serving import ROOT

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("weft") is None, reason="Weft is installed beside the newest SDK alone"
)
ON_NEW_SERVERS = """
import tinker
from loop import train
from weft.engine.testing import local_server
for _ in range(2):
    with local_server() as server:
        service = tinker.ServiceClient(base_url=server.url, api_key=server.api_key)
        print(train(service, server.model, steps=4, seed=3))
        service.close("success").result()
"""
TELLING = """
import pytest
from pathlib import Path

@pytest.mark.parametrize("name", ["one", "two"])
def test_told(name, tinker_server):
    Path(name).write_text(tinker_server.url)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy, so that nothing is written into ours."""
    source = ROOT / "examples" / "local_twin"
    copied = shutil.copytree(
        source,
        tmp_path / "project",
        ignore=shutil.ignore_patterns("__pycache__", ".*", "*.egg-info"),
    )
    return Path(copied)


def ran(project: Path, *arguments: str) -> str:
    """What Python prints there, which must not fail."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=project, capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_its_tests_pass(project: Path) -> None:
    assert "4 passed" in ran(project, "-m", "pytest", "-q")


def test_two_servers_give_the_same_numbers(project: Path) -> None:
    first, second = ran(project, "-c", ON_NEW_SERVERS).splitlines()
    assert first.startswith("[0.")
    assert first == second


def test_each_worker_of_xdist_has_a_server_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(TELLING)
    assert "2 passed" in ran(tmp_path, "-m", "pytest", "-q", "-n", "2")
    assert (tmp_path / "one").read_text() != (tmp_path / "two").read_text()
