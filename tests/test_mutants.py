"""The sabotages still fit the code; `make mutants` applies them."""

import dataclasses
import tomllib
from pathlib import Path

import pytest
from mutants import ROOT, Mutant, fault, load


def test_every_sabotage_can_be_applied_and_has_its_test() -> None:
    assert {mutant.name: fault(mutant) for mutant in load() if fault(mutant)} == {}


def test_no_sabotage_leaves_its_line_as_it_is() -> None:
    assert [mutant.name for mutant in load() if mutant.new == mutant.old] == []


def test_every_sabotage_lies_in_the_file_of_its_package() -> None:
    for source in (ROOT / "tests" / "mutants").iterdir():
        tables = tomllib.loads(source.read_text(encoding="utf-8"))
        assert {Path(table["file"]).parent.name for table in tables.values()} == {source.stem}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"file": "kernels/none.py"}, "there is no kernels/none.py"),
        ({"old": "no such line"}, "its line occurs 0 times in code.py"),
        ({"old": "x"}, "its line occurs 2 times in code.py"),
        ({"test": "test_none.py"}, "there is no test_none.py"),
        ({"test": "test_code.py::test_b"}, "test_code.py has no test_b"),
        ({"test": "test_code.py::test_a[some case]"}, ""),
        ({"test": "test_code.py"}, ""),
    ],
)
def test_what_no_longer_fits_is_said(tmp_path: Path, change: dict[str, str], reason: str) -> None:
    (tmp_path / "code.py").write_text("x = 1\ny = x\n")
    (tmp_path / "test_code.py").write_text("import code\n\ndef test_a(): ...\n")
    mutant = Mutant("any", "code.py", "x = 1", "x = 2", "test_code.py::test_a")
    assert fault(dataclasses.replace(mutant, **change), tmp_path) == reason
