"""How far is each Triton kernel checked? Writes the table of docs/kernels.md.

    python bench/kernel_status.py

interpreted    the tests that run it, under Triton's interpreter on a CPU and as they are on a GPU
compiled       from bench/results/kernel_resources*.json (`make kernels`, `make kernels-oldest`):
               how many of today's variants are fit for all architectures, by which Triton
run on         from bench/results/gpu.json (`make gpu`): device, day, commit
"""

import ast
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from harness import RESULTS, ROOT
from kernel_variants import FOLDER, PACKAGE, all_variants

PAGE = ROOT / "docs" / "kernels.md"
HEAD = "| kernel | interpreted | compiled | run on |"
TESTS = ROOT / "tests" / "kernels" / "gpu"


def status_table() -> str:
    """A row per kernel, as Markdown."""
    kernels = sorted({(key.module, key.kernel) for key in all_variants()})
    compiled, run = list(_records("kernel_resources*")), list(_records("gpu"))
    rows = [
        f"| `{module}.{kernel}` | {interpreted_cell(module)} | "
        f"{compiled_cell(kernel, compiled)} | {run_cell(kernel, run)} |"
        for module, kernel in kernels
    ]
    return "\n".join([HEAD, "| --- | --- | --- | --- |", *rows]) + "\n"


@cache
def covering_tests(module: str) -> list[str]:
    """The tests of a module, or of those that use it, or at least those that import it."""
    users = [path.stem for path in sorted(FOLDER.glob("*.py")) if module in _imported(path)]
    for names in ([module], users):
        found = [f"test_{name}.py" for name in names if (TESTS / f"test_{name}.py").exists()]
        if found:
            return found
    return [path.name for path in sorted(TESTS.glob("test_*.py")) if module in _imported(path)]


def interpreted_cell(module: str) -> str:
    """Links to the tests of a module."""
    links = [f"[{name[5:-3]}](../tests/kernels/gpu/{name})" for name in covering_tests(module)]
    return ", ".join(links) or "*no test*"


def compiled_cell(kernel: str, records: list[dict[str, Any]]) -> str:
    """For each Triton: how many variants of today were compiled and are fit, and where."""
    today = {key.variant for key in all_variants() if key.kernel == kernel}
    cells = []
    for record in records:
        found = record["result"]["kernels"].get(kernel)
        if found is None:
            continue
        fit = today & set(found["variants"]) - set(found["unfit"])
        archs = " ".join(f"sm_{arch}" for arch in found["architectures"])
        cells.append(
            f"{len(fit)} of {len(today)}: Triton {record['result']['triton']}, {archs}, "
            f"{_when(record)}"
        )
    return "; ".join(cells) or "*not compiled*"


def run_cell(kernel: str, records: list[dict[str, Any]]) -> str:
    """The devices on which tests that launch a kernel have passed."""
    cells = [
        f"{record['hardware']['device']} ({_when(record)})"
        for record in records
        if kernel in record["result"].get("kernels", ())
    ]
    return "; ".join(cells) or "*not run*"


def write() -> None:
    """Put the table of today in place of the page's."""
    lines = PAGE.read_text(encoding="utf-8").splitlines(keepends=True)
    first = lines.index(HEAD + "\n")
    rest = (index for index in range(first, len(lines)) if not lines[index].startswith("|"))
    lines[first : next(rest, len(lines))] = [status_table()]
    PAGE.write_text("".join(lines), encoding="utf-8")


def _records(pattern: str) -> Iterator[dict[str, Any]]:
    for path in sorted(RESULTS.glob(f"{pattern}.json")):
        yield json.loads(path.read_text(encoding="utf-8"))


def _when(record: dict[str, Any]) -> str:
    return f"{record['time'][:10]}, {record['commit']}"


@cache
def _imported(path: Path) -> set[str]:
    """Names of the modules of kernels that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if module == PACKAGE or (node.level == 1 and not module):
                names |= {alias.name for alias in node.names}
            elif module.startswith(PACKAGE) or (node.level == 1 and path.parent == FOLDER):
                names.add(module.removeprefix(f"{PACKAGE}."))
    return names


if __name__ == "__main__":
    write()
    print(f"wrote {PAGE.relative_to(ROOT)}")
