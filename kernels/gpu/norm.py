"""RMSNorm of rows, with the residual addition before it. One program per row.

T rows, D width.
"""

from collections.abc import Iterator
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from .shapes import ModelShape
from .variants import UnknownVariant, Variant, type_name

MAX_WIDTH = 8192


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Scale each row to root mean square 1, then by `weight_D`.

        rstd = (mean(x^2) + eps)^(-1/2)        float32
        y = round(x rstd) weight               the product is rounded to the dtype of x first

    Args:
        x_TD: [T, D], contiguous, D at most `MAX_WIDTH`.
        weight_D: in the dtype of x.

    Returns:
        y, and rstd [T] for `rms_norm_backward`.
    """
    _check(weight_D, x_TD)
    y_TD, rstd_T = _outputs(x_TD)
    _forward_variant(x_TD.dtype, x_TD.shape[1], has_delta=False).launch(
        (len(x_TD),),
        x_ptr=x_TD,
        delta_ptr=x_TD,
        weight_ptr=weight_D,
        sum_ptr=x_TD,
        y_ptr=y_TD,
        rstd_ptr=rstd_T,
        eps=eps,
    )
    return y_TD, rstd_T


def add_rms_norm(
    x_TD: Tensor, delta_TD: Tensor, weight_D: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x + delta, rounded to the dtype of x, and `rms_norm` of that, in one pass.

    The bits are those of the addition followed by `rms_norm`. Arguments as there; `delta_TD` like
    `x_TD`.
    """
    _check(weight_D, x_TD, delta_TD)
    sum_TD = torch.empty_like(x_TD)
    y_TD, rstd_T = _outputs(x_TD)
    _forward_variant(x_TD.dtype, x_TD.shape[1], has_delta=True).launch(
        (len(x_TD),),
        x_ptr=x_TD,
        delta_ptr=delta_TD,
        weight_ptr=weight_D,
        sum_ptr=sum_TD,
        y_ptr=y_TD,
        rstd_ptr=rstd_T,
        eps=eps,
    )
    return sum_TD, y_TD, rstd_T


def rms_norm_backward(
    dy_TD: Tensor, x_TD: Tensor, weight_D: Tensor, rstd_T: Tensor, dsum_TD: Tensor | None = None
) -> Tensor:
    """The gradient of what was normed, with that of its other uses added.

        dx = dsum + rstd g - x rstd^3 mean(g x),  g = dy weight        rounded once

    Args:
        x_TD: what was normed: the argument of `rms_norm`, the sum of `add_rms_norm`.
        dsum_TD: gradient that reaches the sum on other ways; None for none.
    """
    others_TD = dy_TD if dsum_TD is None else dsum_TD
    _check(weight_D, x_TD, dy_TD, others_TD)
    dx_TD = torch.empty_like(x_TD)
    _backward_variant(x_TD.dtype, x_TD.shape[1], has_sum=dsum_TD is not None).launch(
        (len(x_TD),),
        dy_ptr=dy_TD,
        x_ptr=x_TD,
        weight_ptr=weight_D,
        rstd_ptr=rstd_T,
        dsum_ptr=others_TD,
        dx_ptr=dx_TD,
    )
    return dx_TD


def all_variants(shape: ModelShape) -> Iterator[Variant]:
    """Every variant that a model of this shape can launch."""
    for dtype in (torch.bfloat16, torch.float32):
        for flag in (False, True):
            yield _forward_variant(dtype, shape.width, has_delta=flag)
            yield _backward_variant(dtype, shape.width, has_sum=flag)


def _check(weight_D: Tensor, x_TD: Tensor, *others_TD: Tensor) -> None:
    for rows_TD in (x_TD, *others_TD):
        if not rows_TD.is_contiguous() or rows_TD.shape != x_TD.shape:
            raise ValueError(
                f"rows {tuple(rows_TD.shape)} with strides {rows_TD.stride()} where contiguous "
                f"{tuple(x_TD.shape)} are needed"
            )
        if rows_TD.dtype != weight_D.dtype or weight_D.shape != x_TD.shape[1:]:
            raise ValueError(
                f"{rows_TD.dtype} rows of {x_TD.shape[1]} beside {weight_D.dtype} weights of "
                f"{tuple(weight_D.shape)}"
            )


def _outputs(x_TD: Tensor) -> tuple[Tensor, Tensor]:
    rstd_T = torch.empty(len(x_TD), dtype=torch.float32, device=x_TD.device)
    return torch.empty_like(x_TD), rstd_T


@lru_cache
def _forward_variant(dtype: torch.dtype, width: int, *, has_delta: bool) -> Variant:
    element, name = f"*{type_name(dtype)}", "add_rms_norm" if has_delta else "rms_norm"
    types = dict.fromkeys(("x_ptr", "delta_ptr", "weight_ptr", "sum_ptr", "y_ptr"), element)
    return Variant(
        name=_name(name, dtype, width),
        kernel=_rms_norm_fwd_kernel,
        types={**types, "rstd_ptr": "*fp32", "eps": "fp32"},
        constants={"WIDTH": width, "BLOCK": _block(width), "HAS_DELTA": has_delta},
        num_warps=_num_warps(width),
        num_stages=1,
    )


@lru_cache
def _backward_variant(dtype: torch.dtype, width: int, *, has_sum: bool) -> Variant:
    element, name = f"*{type_name(dtype)}", "add_rms_norm" if has_sum else "rms_norm"
    types = dict.fromkeys(("dy_ptr", "x_ptr", "weight_ptr", "dsum_ptr", "dx_ptr"), element)
    return Variant(
        name=_name(f"{name}_backward", dtype, width),
        kernel=_rms_norm_bwd_kernel,
        types={**types, "rstd_ptr": "*fp32"},
        constants={"WIDTH": width, "BLOCK": _block(width), "HAS_SUM": has_sum},
        num_warps=_num_warps(width),
        num_stages=1,
        max_narrow_loads=1,  # rstd
    )


def _name(operation: str, dtype: torch.dtype, width: int) -> str:
    name = f"{operation} {type_name(dtype)} width {width}"
    if not 0 < width <= MAX_WIDTH:
        raise UnknownVariant(f"{name}: the width is not from 1 to {MAX_WIDTH}")
    return name


def _block(width: int) -> int:
    return 1 << (width - 1).bit_length()


def _num_warps(width: int) -> int:
    """Elements of a row that a thread holds are at most 32, and at least the 8 of one load."""
    return min(8, max(1, _block(width) // 256))


@triton.jit
def scaled_row(x, rstd, weight, ELEMENT: tl.constexpr):
    """Float32 tile of round(x rstd) weight, before its own rounding to ELEMENT."""
    return (x * rstd).to(ELEMENT).to(tl.float32) * weight


@triton.jit
def _rms_norm_fwd_kernel(
    x_ptr,
    delta_ptr,
    weight_ptr,
    sum_ptr,
    y_ptr,
    rstd_ptr,
    eps,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_DELTA: tl.constexpr,
):
    row = tl.program_id(0)
    cols = tl.arange(0, BLOCK)
    is_col = cols < WIDTH
    offsets = row.to(tl.int64) * WIDTH + cols
    element = y_ptr.dtype.element_ty
    weight = tl.load(weight_ptr + cols, mask=is_col, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + offsets, mask=is_col, other=0.0).to(tl.float32)
    if HAS_DELTA:
        delta = tl.load(delta_ptr + offsets, mask=is_col, other=0.0).to(tl.float32)
        rounded = (x + delta).to(element)
        tl.store(sum_ptr + offsets, rounded, mask=is_col)
        x = rounded.to(tl.float32)
    rstd = tl.rsqrt(tl.sum(x * x, axis=0) / WIDTH + eps)
    tl.store(rstd_ptr + row, rstd)
    tl.store(y_ptr + offsets, scaled_row(x, rstd, weight, element).to(element), mask=is_col)


@triton.jit
def _rms_norm_bwd_kernel(
    dy_ptr,
    x_ptr,
    weight_ptr,
    rstd_ptr,
    dsum_ptr,
    dx_ptr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_SUM: tl.constexpr,
):
    row = tl.program_id(0)
    cols = tl.arange(0, BLOCK)
    is_col = cols < WIDTH
    offsets = row.to(tl.int64) * WIDTH + cols
    rstd = tl.load(rstd_ptr + row)
    x = tl.load(x_ptr + offsets, mask=is_col, other=0.0).to(tl.float32)
    g = tl.load(dy_ptr + offsets, mask=is_col, other=0.0).to(tl.float32)
    g *= tl.load(weight_ptr + cols, mask=is_col, other=0.0).to(tl.float32)
    share = tl.sum(g * x, axis=0) / WIDTH * rstd * rstd * rstd
    dx = g * rstd - x * share
    if HAS_SUM:
        dx += tl.load(dsum_ptr + offsets, mask=is_col, other=0.0).to(tl.float32)
    tl.store(dx_ptr + offsets, dx.to(dx_ptr.dtype.element_ty), mask=is_col)
