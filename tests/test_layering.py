"""Imports go downward only, and never through a bare folder name."""

import ast
import importlib.util
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ALLOWED: dict[str, set[str]] = {
    "client": set(),
    "kernels": set(),
    "engine": {"client", "kernels"},
}
# Inside the engine, too: a package imports only packages to its left, and the root's leaves.
ENGINE_ORDER = (
    "files",
    "model",
    "hosted",
    "adapters",
    "sampling",
    "broker",
    "gateway",
    "worker",
    "demo",
    "verify",
    "testing",
)
USES = {"demo": {"embedded"}, "testing": {"extras", "serving"}}  # of the root, on top of its leaves
LEAVES = {"faults", "histogram", "logs", "restarts", "trace"}
HEAVY = {"torch", "triton", "transformers", "safetensors"}
TORCH_FREE = (
    "broker.shell",
    "files.store",
    "worker.checkpoints",
    "worker.scheduler",
    "worker.units",
    "embedded",
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
    for path in (ROOT / package).rglob("*.py"):
        depth = len(path.relative_to(ROOT).parts)  # dots that lead out of the package
        for level, module, _ in imports(path):
            target = module.split(".")[0]
            if level == depth and target not in ALLOWED[package]:
                offences.append(f"{path.name}: {module}")
            if level == 0 and target in {*ALLOWED, "weft"}:
                offences.append(f"{path.name}: {module}")
    assert offences == []


def test_a_part_of_the_engine_imports_only_parts_below_it() -> None:
    offences = []
    for place, part in enumerate(ENGINE_ORDER):
        allowed = {*ENGINE_ORDER[:place], *LEAVES, *USES.get(part, ())}
        for path in (ROOT / "engine" / part).glob("*.py"):
            offences += [
                f"{part}/{path.name}: ..{module}"
                for level, module, _ in imports(path)
                if level == 2 and module.split(".")[0] not in allowed
            ]
    assert offences == []


def test_every_part_of_the_engine_has_a_place_in_the_order() -> None:
    parts = {path.parent.name for path in (ROOT / "engine").glob("*/__init__.py")}
    assert parts == set(ENGINE_ORDER)


def test_no_module_of_the_client_imports_torch_when_it_loads() -> None:
    offences = [
        f"{path.name}: {module}"
        for path in (ROOT / "client").rglob("*.py")
        for level, module, is_top in imports(path)
        if is_top and level == 0 and module.split(".")[0] in HEAVY
    ]
    assert offences == []


@pytest.mark.parametrize("module", TORCH_FREE)
def test_the_broker_side_of_the_engine_loads_without_torch(module: str) -> None:
    code = f"import sys, weft.engine.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0


def test_a_worker_on_a_cpu_loads_without_triton() -> None:
    code = "import sys, weft.engine.worker.loading; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "folder",
    ["client", "kernels", "kernels/gpu", "engine", *(f"engine/{part}" for part in ENGINE_ORDER)],
)
def test_there_are_no_cycles_inside_a_package(folder: str) -> None:
    edges = {
        path.stem: {
            module.split(".")[0] for level, module, is_top in imports(path) if level == 1 and is_top
        }
        for path in (ROOT / folder).glob("*.py")
    }
    assert list(TopologicalSorter(edges).static_order())


@pytest.mark.parametrize("name", sorted(ALLOWED))
def test_bare_folder_names_are_not_importable(name: str) -> None:
    spec = importlib.util.find_spec(name)
    assert spec is None or spec.origin == str(ROOT / "bench" / f"{name}.py")  # a script


def test_a_script_with_the_name_of_a_folder_imports_nothing_when_it_is_found() -> None:
    for name in ALLOWED:
        for path in (ROOT / "bench").glob(f"{name}.py"):
            docstring, guard = ast.parse(path.read_text(encoding="utf-8")).body
            assert isinstance(docstring, ast.Expr)
            assert isinstance(guard, ast.If)
            assert ast.unparse(guard.test) == "__name__ == '__main__'"
