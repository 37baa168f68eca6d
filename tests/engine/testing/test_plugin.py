"""The plugin in runs of pytest of its own, as its users have it."""

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from random_models import save_random_model

USING = """
import os
from pathlib import Path
import weft.client

seen = []

def test_a_client_finds_the_server(tinker_env):
    with weft.client.ServiceClient() as service:
        (model,) = service.get_server_capabilities().supported_models
    assert model.model_name == tinker_env.model == os.environ["EXPECTED"]
    assert os.environ["TINKER_BASE_URL"] == tinker_env.url
    assert "TINKER_PROJECT_ID" not in os.environ
    seen.append(tinker_env)

def test_all_tests_share_it(tinker_server):
    assert seen == [tinker_server]

def test_the_environment_is_as_before(tinker_server):
    assert os.environ["TINKER_PROJECT_ID"] == "real"
    assert "TINKER_BASE_URL" not in os.environ

def test_a_folder_of_its_own(tinker_cwd):
    assert Path.cwd() == tinker_cwd
    assert list(tinker_cwd.iterdir()) == []
"""
NOT_USING = """
import sys

def test_nothing_is_loaded():
    assert "weft.engine.testing.plugin" in sys.modules
    heavy = {"aiohttp", "msgpack", "numpy", "tinker", "torch", "transformers", "zmq"}
    assert heavy & sys.modules.keys() == set()
"""
BOTH = "def test_a(tinker_server): ...\ndef test_b(tinker_cwd): ...\ndef test_c(): ...\n"


def run(folder: Path, test: str, *options: str, **settings: str) -> tuple[str, str]:
    """Run a test file with the plugin alone; gives the last line, and everything."""
    lines = ["[pytest]", "filterwarnings = error"]
    lines += [f"{name} = {value}" for name, value in settings.items()]
    (folder / "pytest.ini").write_text("\n".join(lines))
    (folder / "tests").mkdir()
    (folder / "tests" / "test_it.py").write_text(test)
    command = [sys.executable, "-P", "-m", "pytest", "-p", "weft.engine.testing.plugin"]
    environment = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "TINKER_PROJECT_ID": "real"}
    done = subprocess.run(
        [*command, "-q", *options],
        cwd=folder / "tests",  # the ini file is found above
        env={**os.environ, **environment, "EXPECTED": str(folder / "model")},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.splitlines()[-1], done.stdout + done.stderr


def test_fixtures_lead_to_one_server_of_the_model_in_the_ini_file(tmp_path: Path) -> None:
    save_random_model(tmp_path / "model")
    last, everything = run(tmp_path, USING, weft_model="model")
    assert last.startswith("4 passed"), everything


def test_a_run_without_the_fixtures_loads_nothing(tmp_path: Path) -> None:
    last, everything = run(tmp_path, NOT_USING)
    assert last.startswith("1 passed"), everything


def test_a_model_of_the_command_line_that_is_not_there_fails_its_tests_alone(
    tmp_path: Path,
) -> None:
    last, everything = run(tmp_path, BOTH, "--weft-model", "nowhere", weft_model="weft/tiny")
    assert last.startswith("1 passed, 2 errors"), everything
    assert "weft: 'nowhere' is no directory here" in everything
    assert "Traceback" not in everything


@pytest.mark.parametrize("seconds", ["soon", "nan"])
def test_a_start_timeout_is_a_number_of_seconds(tmp_path: Path, seconds: str) -> None:
    last, everything = run(tmp_path, BOTH, weft_start_timeout=seconds)
    assert last.startswith("1 passed, 2 errors"), everything
    assert f"weft_start_timeout is '{seconds}', not a number of seconds" in everything


def test_pytest_finds_the_plugin() -> None:
    (found,) = entry_points(group="pytest11", name="weft")
    assert found.value == "weft.engine.testing.plugin"
