"""Imports go downward only, and never through a bare folder name."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ALLOWED = {"client": set(), "kernels": set(), "engine": {"client", "kernels"}}
HEAVY = {"torch", "triton", "transformers", "safetensors"}
TORCH_FREE = (
    "broker",
    "broker_core",
    "journal",
    "lanes",
    "run_log",
    "checkpoints",
    "scheduler",
    "units",
)


def imports(path: Path) -> list[tuple[int, str, bool]]:
    """(relative level, module, is at module level) of every import in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = set(map(id, tree.body))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(0, alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found += [(node.level, name, id(node) in top) for name in names]
    return found


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_a_package_imports_only_what_lies_below_it(package: str) -> None:
    offences = []
    for path in (ROOT / package).glob("*.py"):
        for level, module, _ in imports(path):
            target = module.split(".")[0]
            if level == 2 and target not in ALLOWED[package]:
                offences.append(f"{path.name}: ..{module}")
            if level == 0 and target in {*ALLOWED, "weft"}:
                offences.append(f"{path.name}: {module}")
    assert offences == []


def test_no_module_of_the_client_imports_torch_when_it_loads() -> None:
    offences = [
        f"{path.name}: {module}"
        for path in (ROOT / "client").glob("*.py")
        for level, module, is_top in imports(path)
        if is_top and level == 0 and module.split(".")[0] in HEAVY
    ]
    assert offences == []


@pytest.mark.parametrize(
    "module", [name for name in TORCH_FREE if (ROOT / "engine" / f"{name}.py").exists()]
)
def test_the_broker_side_of_the_engine_loads_without_torch(module: str) -> None:
    code = f"import sys, weft.engine.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0


def test_there_are_no_cycles_inside_a_package() -> None:
    for package in ALLOWED:
        edges = {
            path.stem: {
                module.split(".")[0]
                for level, module, is_top in imports(path)
                if level == 1 and is_top
            }
            for path in (ROOT / package).glob("*.py")
        }
        seen: dict[str, int] = {}

        def visit(
            name: str, edges: dict[str, set[str]] = edges, seen: dict[str, int] = seen
        ) -> None:
            assert seen.get(name) != 1, f"cycle through {name}"
            if name not in seen:
                seen[name] = 1
                for target in edges.get(name, ()):
                    visit(target)
                seen[name] = 2

        for name in edges:
            visit(name)


@pytest.mark.parametrize("name", sorted(ALLOWED))
def test_bare_folder_names_are_not_importable(name: str) -> None:
    assert importlib.util.find_spec(name) is None
