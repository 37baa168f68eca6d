"""What ships is what lies in the tree."""

import tomllib
from pathlib import Path

import pytest

from weft.engine.extras import EXTRAS

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ("client", "engine", "kernels")
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_shipped_folder_is_listed() -> None:
    setuptools = SETTINGS["tool"]["setuptools"]
    (prefix,) = setuptools["package-dir"]
    folders = {path.parent for top in SHIPPED for path in (ROOT / top).rglob("*.py")}
    expected = [".".join([prefix, *folder.relative_to(ROOT).parts]) for folder in folders]
    assert sorted(setuptools["packages"]) == sorted(expected)


def test_every_data_file_of_a_package_is_listed() -> None:
    patterns = SETTINGS["tool"]["setuptools"]["package-data"]
    for top in SHIPPED:
        listed = {
            path
            for pattern in [*patterns["*"], *patterns.get(f"weft.{top}", [])]
            for path in (ROOT / top).glob(pattern)
        }
        files = {
            path for path in (ROOT / top).rglob("*") if path.is_file() and path.suffix != ".py"
        }
        assert {path for path in files if "__pycache__" not in path.parts} <= listed


def test_the_base_install_is_the_light_client() -> None:
    names = [requirement.split(">")[0] for requirement in SETTINGS["project"]["dependencies"]]
    assert sorted(names) == ["msgpack", "numpy", "pyzmq"]


@pytest.mark.parametrize("extra", ["engine", "gateway"])
def test_what_is_asked_of_an_extra_is_in_it(extra: str) -> None:
    listed = SETTINGS["project"]["optional-dependencies"][extra]
    names = {requirement.split(">")[0].replace("-", "_") for requirement in listed}
    assert set(EXTRAS[extra]) <= names


def test_the_extra_for_tests_brings_engine_and_gateway() -> None:
    extras = SETTINGS["project"]["optional-dependencies"]
    assert "weft[engine,gateway]" in extras["testing"]
    assert set(EXTRAS["testing"]) == {*EXTRAS["engine"], *EXTRAS["gateway"]}


def test_torch_is_pinned() -> None:
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert "torch==2.13.0" in constraints
