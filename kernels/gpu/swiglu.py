"""SwiGLU of gate and up, and its gradients. A program computes a piece of one row.

T rows, F feed-forward width.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .shapes import ModelShape
from .variants import Variant, type_name

UNIT = 16  # elements in which strides are counted where they allow it, so that loads are wide
BLOCK = 1024  # elements of a program


def swiglu(gate_TF: Tensor, up_TF: Tensor) -> Tensor:
    """Return silu(gate) * up, [T, F] contiguous; float32, rounded once.

    Args:
        gate_TF: rows may be any stride apart, like those of `up_TF`.
    """
    out_TF = torch.empty(gate_TF.shape, dtype=gate_TF.dtype, device=gate_TF.device)
    unit, strides = _strides(gate_TF.shape, gate=gate_TF, up=up_TF)
    num_rows, width = gate_TF.shape
    _forward_variant(gate_TF.dtype, width, unit=unit).launch(
        (num_rows, triton.cdiv(width, BLOCK)),
        gate_ptr=gate_TF,
        up_ptr=up_TF,
        out_ptr=out_TF,
        **strides,
    )
    return out_TF


def swiglu_backward(dy_TF: Tensor, gate_TF: Tensor, up_TF: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of gate and up, contiguous.

    dgate = dy up s (1 + gate (1 - s)),  dup = dy gate s,  s = sigmoid(gate)
    """
    dgate_TF = torch.empty(gate_TF.shape, dtype=gate_TF.dtype, device=gate_TF.device)
    dup_TF = torch.empty_like(dgate_TF)
    unit, strides = _strides(gate_TF.shape, dy=dy_TF, gate=gate_TF, up=up_TF)
    num_rows, width = gate_TF.shape
    _backward_variant(gate_TF.dtype, width, unit=unit).launch(
        (num_rows, triton.cdiv(width, BLOCK)),
        dy_ptr=dy_TF,
        gate_ptr=gate_TF,
        up_ptr=up_TF,
        dgate_ptr=dgate_TF,
        dup_ptr=dup_TF,
        **strides,
    )
    return dgate_TF, dup_TF


def all_variants(shape: ModelShape) -> Iterator[Variant]:
    """Every variant that a model of this shape can launch."""
    for dtype in (torch.bfloat16, torch.float32):
        yield _forward_variant(dtype, shape.ffn_width, unit=UNIT)
        yield _backward_variant(dtype, shape.ffn_width, unit=UNIT)


def _strides(shape: torch.Size, **rows: Tensor) -> tuple[int, dict[str, int]]:
    """The unit, and the distance of rows in units, for each of some [T, F]."""
    dtype = rows["gate"].dtype
    for x_TF in rows.values():
        is_alike = x_TF.shape == shape and x_TF.dtype == dtype
        if not is_alike or (x_TF.numel() and shape[1] > 1 and x_TF.stride(1) != 1):
            raise ValueError(
                f"{x_TF.dtype} rows {tuple(x_TF.shape)} with strides {x_TF.stride()} beside "
                f"{dtype} {tuple(shape)}"
            )
    strides = {f"{name}_stride": x_TF.stride(0) for name, x_TF in rows.items()}
    unit = UNIT if all(size % UNIT == 0 for size in (shape[1], *strides.values())) else 1
    return unit, {name: stride // unit for name, stride in strides.items()}


@lru_cache
def _forward_variant(dtype: torch.dtype, width: int, *, unit: int) -> Variant:
    return _variant(_swiglu_fwd_kernel, "swiglu", dtype, width, unit)


@lru_cache
def _backward_variant(dtype: torch.dtype, width: int, *, unit: int) -> Variant:
    return _variant(_swiglu_bwd_kernel, "swiglu_backward", dtype, width, unit)


def _variant(kernel: Any, name: str, dtype: torch.dtype, width: int, unit: int) -> Variant:
    element = type_name(dtype)
    types = {
        argument: f"*{element}" if argument.endswith("_ptr") else "i32"
        for argument in kernel.arg_names
        if not argument.isupper()
    }
    return Variant(
        name=f"{name} {element} width {width}",
        kernel=kernel,
        types=types,
        constants={"WIDTH": width, "UNIT": unit, "BLOCK": BLOCK},
        num_warps=4,
        num_stages=1,
    )


@triton.jit
def _sigmoid(x):
    """Without an overflow in between."""
    small = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, small) / (1.0 + small)


@triton.jit
def gated(gate, up):
    """silu(gate) * up of float32 tiles."""
    return gate * _sigmoid(gate) * up


@triton.jit(do_not_specialize=["gate_stride", "up_stride"])
def _swiglu_fwd_kernel(
    gate_ptr,
    up_ptr,
    out_ptr,
    gate_stride,
    up_stride,
    WIDTH: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_col = cols < WIDTH
    gate = tl.load(gate_ptr + row * gate_stride * UNIT + cols, mask=is_col, other=0.0)
    up = tl.load(up_ptr + row * up_stride * UNIT + cols, mask=is_col, other=0.0)
    out = gated(gate.to(tl.float32), up.to(tl.float32))
    tl.store(out_ptr + row * WIDTH + cols, out.to(out_ptr.dtype.element_ty), mask=is_col)


@triton.jit(do_not_specialize=["dy_stride", "gate_stride", "up_stride"])
def _swiglu_bwd_kernel(
    dy_ptr,
    gate_ptr,
    up_ptr,
    dgate_ptr,
    dup_ptr,
    dy_stride,
    gate_stride,
    up_stride,
    WIDTH: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_col = cols < WIDTH
    dy = tl.load(dy_ptr + row * dy_stride * UNIT + cols, mask=is_col, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + row * gate_stride * UNIT + cols, mask=is_col, other=0.0)
    up = tl.load(up_ptr + row * up_stride * UNIT + cols, mask=is_col, other=0.0).to(tl.float32)
    gate = gate.to(tl.float32)
    slope = _sigmoid(gate)
    silu = gate * slope
    dgate = dy * up * (slope * (1.0 + gate - silu))
    tl.store(dgate_ptr + row * WIDTH + cols, dgate.to(dgate_ptr.dtype.element_ty), mask=is_col)
    tl.store(dup_ptr + row * WIDTH + cols, (dy * silu).to(dup_ptr.dtype.element_ty), mask=is_col)
