"""Sabotage the code one line at a time and expect a named test to notice.

    make mutants            all of them
    python tests/helpers/mutants.py NAME ...

The sabotages are the tables of `tests/mutants/`, a file for each package that they sabotage. Each is
applied to a copy of the tree; its test must pass without it and fail with it. Exit status 1 when one
survives or no longer applies.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
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
    """All committed sabotages.

    Raises:
        ValueError: two have the same name.
    """
    found: dict[str, Mutant] = {}
    for source in sorted((ROOT / "tests" / "mutants").glob("*.toml")):
        for name, fields in tomllib.loads(source.read_text(encoding="utf-8")).items():
            if name in found:
                raise ValueError(f"{source.name} has a second {name}")
            found[name] = Mutant(name=name, **fields)
    return list(found.values())


def fault(mutant: Mutant, tree: Path = ROOT) -> str:
    """Why a sabotage cannot be applied to a tree, or an empty string when it can."""
    path, (test, _, function) = tree / mutant.file, mutant.test.partition("::")
    if not path.is_file():
        return f"there is no {mutant.file}"
    if (count := path.read_text(encoding="utf-8").count(mutant.old)) != 1:
        return f"its line occurs {count} times in {mutant.file}"
    if not (tree / test).is_file():
        return f"there is no {test}"
    name = function.partition("[")[0]
    if name and f"\ndef {name}(" not in (tree / test).read_text(encoding="utf-8"):
        return f"{test} has no {name}"
    return ""


def copy_tree(target: Path) -> None:
    """Copy what the tests need; links stay links, so the copy imports itself."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "*.pyc", "results")
            shutil.copytree(source, target / name, symlinks=True, ignore=ignore)
        elif source.exists():
            shutil.copy(source, target / name)


def passes(tree: Path, tests: Iterable[str]) -> bool:
    """Whether tests pass in a tree, imported from that tree; ends the program when one cannot run."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(tree / "tests" / "typing"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(f"cannot run:\n{done.stdout.decode()}{done.stderr.decode()}")
    return done.returncode == 0


def survives(tree: Path, mutant: Mutant) -> str:
    """Why a sabotage was not caught, or an empty string when it was."""
    if reason := fault(mutant, tree):
        return reason
    path = tree / mutant.file
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        return "the test still passes" if passes(tree, [mutant.test]) else ""
    finally:
        path.write_text(text, encoding="utf-8")


def main(names: list[str]) -> int:
    """Run the sabotages of these names, or all; returns 1 when one survived."""
    mutants = [mutant for mutant in load() if not names or mutant.name in names]
    if unknown := set(names) - {mutant.name for mutant in mutants}:
        raise SystemExit(f"no sabotage {', '.join(sorted(unknown))}")
    survivors = 0
    with tempfile.TemporaryDirectory(prefix="weft-mutants-") as folder:
        tree = Path(folder)
        copy_tree(tree)
        tests = sorted({mutant.test for mutant in mutants if not fault(mutant, tree)})
        if tests and not passes(tree, tests):
            failing = [test for test in tests if not passes(tree, [test])]
            raise SystemExit(f"fails without any sabotage: {', '.join(failing) or 'all together'}")
        for mutant in mutants:
            reason = survives(tree, mutant)
            survivors += bool(reason)
            sys.stdout.write(f"{'SURVIVED' if reason else 'caught':9} {mutant.name} {reason}\n")
            sys.stdout.flush()
    sys.stdout.write(f"{len(mutants) - survivors} of {len(mutants)} caught\n")
    return min(survivors, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
