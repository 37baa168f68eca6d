"""Sabotage the code one line at a time and expect a named test to notice.

    make mutants            all of them
    python tests/mutants.py NAME ...

Each sabotage of `mutants.toml` is applied to a copy of the tree; its test must pass without it and
fail with it. Exit status 1 when one survives or no longer applies.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("bench", "client", "docs", "engine", "examples", "kernels", "tests", "pyproject.toml")


@dataclass(frozen=True)
class Mutant:
    """One sabotage: `old` occurs once in `file` and becomes `new`; `test` must then fail."""

    name: str
    file: str
    old: str
    new: str
    test: str


def load() -> list[Mutant]:
    """All committed sabotages."""
    table = tomllib.loads((ROOT / "tests" / "mutants.toml").read_text(encoding="utf-8"))
    return [Mutant(name=name, **fields) for name, fields in table.items()]


def copy_tree(target: Path) -> None:
    """Copy what the tests need; links stay links, so the copy imports itself."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "*.pyc", "results")
            shutil.copytree(source, target / name, symlinks=True, ignore=ignore)
        elif source.exists():
            shutil.copy(source, target / name)


def passes(tree: Path, test: str) -> bool:
    """Whether a test passes in a tree, imported from that tree."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(tree / "tests" / "typing"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", test]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(f"{test} cannot run:\n{done.stdout.decode()}{done.stderr.decode()}")
    return done.returncode == 0


def survives(tree: Path, mutant: Mutant) -> str:
    """Why a sabotage was not caught, or an empty string when it was."""
    path = tree / mutant.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        return f"its line occurs {text.count(mutant.old)} times in {mutant.file}"
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        return "the test still passes" if passes(tree, mutant.test) else ""
    finally:
        path.write_text(text, encoding="utf-8")


def main(names: list[str]) -> int:
    """Run the sabotages of these names, or all; returns the number that survived."""
    mutants = [mutant for mutant in load() if not names or mutant.name in names]
    survivors = 0
    with tempfile.TemporaryDirectory(prefix="weft-mutants-") as folder:
        tree = Path(folder)
        copy_tree(tree)
        for test in sorted({mutant.test for mutant in mutants}):
            if not passes(tree, test):
                raise SystemExit(f"{test} fails without any sabotage")
        for mutant in mutants:
            reason = survives(tree, mutant)
            survivors += bool(reason)
            sys.stdout.write(f"{'SURVIVED' if reason else 'caught':9} {mutant.name} {reason}\n")
            sys.stdout.flush()
    sys.stdout.write(f"{len(mutants) - survivors} of {len(mutants)} caught\n")
    return min(survivors, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
