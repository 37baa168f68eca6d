"""Kernels with one fault each, for the gate that compiles: run it with the gate's own options."""

import os
import sys
from collections.abc import Iterator
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # before a kernel is defined

import kernel_resources
import kernel_variants
import triton
import triton.language as tl

from weft.kernels.gpu.variants import Variant


@triton.jit(do_not_specialize=["pitch"])
def _product_kernel(
    x_ptr,
    w_ptr,
    y_ptr,
    pitch,
    K: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    rows, cols = tl.arange(0, BLOCK_T)[:, None], tl.arange(0, BLOCK_O)[None, :]
    inner = tl.arange(0, BLOCK_K)
    acc = tl.zeros([BLOCK_T, BLOCK_O], tl.float32)
    for start in range(0, K, BLOCK_K):
        x = tl.load(x_ptr + rows * K + start + inner[None, :])
        w = tl.load(w_ptr + cols.trans() * K + start + inner[None, :])
        acc = tl.dot(x, w.trans(), acc, input_precision=PRECISION)
    tl.store(y_ptr + rows.to(tl.int64) * pitch + cols, acc)


@triton.jit
def _copy_kernel(x_ptr, y_ptr, pitch, BLOCK: tl.constexpr):
    rows, cols = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
    tl.store(y_ptr + rows * BLOCK + cols, tl.load(x_ptr + rows * pitch + cols))


@triton.jit
def _count_kernel(count_ptr):
    tl.atomic_add(count_ptr, 1)


class _Aborting:
    """In the place of a kernel; the compiler's process dies of it."""

    fn = _count_kernel.fn

    @property
    def arg_names(self) -> list[str]:
        os.abort()


def product(name: str, dtype: str = "bf16", rows: int = 64, **options: Any) -> Variant:
    """A product of matrices; sound where nothing else is said."""
    sizes = {"K": 1024, "BLOCK_T": rows, "BLOCK_O": 64, "BLOCK_K": 64, "PRECISION": "ieee"}
    constants = {key: options.pop(key, value) for key, value in sizes.items()}
    types = {"x_ptr": f"*{dtype}", "w_ptr": f"*{dtype}", "y_ptr": "*fp32", "pitch": "i32"}
    return Variant(
        name=name,
        kernel=_product_kernel,
        types=types,
        constants=constants,
        **{"has_dot": dtype == "bf16", **options},
    )


def copy(name: str, **options: Any) -> Variant:
    """A copy of rows whose pitch the compiler knows only where it is told."""
    types = {"x_ptr": "*bf16", "y_ptr": "*bf16", "pitch": "i32"}
    return Variant(name=name, kernel=_copy_kernel, types=types, constants={"BLOCK": 64}, **options)


def planted(models: tuple[str, ...]) -> Iterator[Variant]:
    """All of them, whatever the models."""
    yield product("sound")
    yield product("low tile", rows=16)
    yield copy("aligned", multiples_of_16=("pitch",))
    yield product("spilling", "fp32", rows=128, BLOCK_K=32, num_warps=2)
    yield product("off the tensor cores", "fp32", rows=16, has_dot=True)
    yield product("not known to have a product", has_dot=False)
    yield product("in tf32", "fp32", PRECISION="tf32")
    yield product("too large", rows=128, BLOCK_O=128, BLOCK_K=128, num_warps=8, num_stages=6)
    yield copy("scalar loads")
    yield Variant(name="atomic", kernel=_count_kernel, types={"count_ptr": "*i32"}, constants={})
    yield Variant(name="untyped", kernel=_count_kernel, types={}, constants={})
    yield Variant(name="aborting", kernel=_Aborting(), types={}, constants={})


if __name__ == "__main__":
    kernel_variants._enumerated = planted
    sys.exit(kernel_resources.main())
