"""The dispatch table of the Triton kernels: every variant that a published model can launch.

It is what the modules in kernels/gpu enumerate by their functions `all_variants`.
"""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

from harness import ROOT

FOLDER = ROOT / "kernels" / "gpu"
PACKAGE = "weft.kernels.gpu"
# Models that differ in kind: heads of 128 and 64; 2, 4 and 7 heads a key head; norms of queries and
# keys or none; widths that 1024 divides and others.
COVER_MODELS = ("Qwen3-0.6B", "Llama-3.2-1B", "Qwen2.5-7B")
KIND_CONSTANTS = ("BUCKET", "HEAD_DIM")  # numbers that make a variant one of another kind


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """Names a variant in any process."""

    module: str  # where the kernel is, without the package
    kernel: str  # the function
    variant: str  # `Variant.name`, unique among those of a kernel

    @property
    def label(self) -> str:
        """Kernel and variant, for people."""
        kernel = self.kernel.strip("_").removesuffix("_kernel")
        return f"{kernel}: {self.variant.removeprefix(kernel).strip()}"


def modules() -> list[str]:
    """Names of the modules that enumerate variants."""
    paths = sorted(FOLDER.glob("*.py"))
    return [path.stem for path in paths if "\ndef all_variants(" in path.read_text("utf-8")]


@cache
def all_variants(models: tuple[str, ...] = ()) -> dict[Key, Any]:
    """The variants for some published models, each once; by default for all of them.

    Raises:
        ValueError: two variants of a kernel that differ have one name.
    """
    found: dict[Key, Any] = {}
    for variant in _enumerated(models):
        module = variant.kernel.fn.__module__.rpartition(".")[2]
        key = Key(module, variant.kernel.fn.__name__, variant.name)
        if _content(found.setdefault(key, variant)) != _content(variant):
            raise ValueError(f"two variants of {key.kernel} are called {key.variant}")
    return found


def cover() -> list[Key]:
    """Of the models that differ in kind so many variants that everything is compiled once.

    Everything is each kernel for each type of elements with each rank bucket and head width, and
    with each of its switches. Variants with the largest tiles come first.
    """
    found = all_variants(COVER_MODELS)
    covered: set[object] = set()
    chosen = []
    for key in sorted(found, key=lambda key: -_tile_size(found[key])):
        features = set(_features(found[key]))
        if not features <= covered:
            covered |= features
            chosen.append(key)
    return sorted(chosen)


def _enumerated(models: tuple[str, ...]) -> Iterator[Any]:
    shapes = importlib.import_module(f"{PACKAGE}.shapes").PUBLISHED
    for module in modules():
        enumerate_for = importlib.import_module(f"{PACKAGE}.{module}").all_variants
        for shape in shapes:
            if not models or shape.name in models:
                yield from enumerate_for(shape)


def _content(variant: Any) -> tuple[Any, ...]:
    """Everything that decides what is compiled and asked of it."""
    return (
        sorted(variant.types.items()),
        sorted((name, repr(value)) for name, value in variant.constants.items()),
        (variant.options, variant.has_dot, variant.multiples_of_16, variant.max_narrow_loads),
    )


def _features(variant: Any) -> Iterator[object]:
    constants = variant.constants.items()
    form = (variant.kernel.fn.__name__, frozenset(variant.types.values()))
    yield form, tuple((name, value) for name, value in constants if name in KIND_CONSTANTS)
    for name, value in [*variant.types.items(), *constants]:
        if isinstance(value, bool) or not isinstance(value, int):
            yield form, name, value


def _tile_size(variant: Any) -> int:
    sizes = (value for name, value in variant.constants.items() if name.startswith("BLOCK"))
    return prod(size for size in sizes if size)
