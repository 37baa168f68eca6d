"""Queries and keys on their way to attention: norm of each head, where there is one, and rotation.

T tokens, H query heads, G key heads, K head width, J = K / 2 rotated pairs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from .norm import scaled_row
from .shapes import ModelShape
from .variants import UnknownVariant, Variant, type_name

MAX_HEAD_DIM = 256
UNIT = 16  # elements in which strides are counted where they allow it, so that loads are wide
TILE_PAIRS = 512  # of one program

Heads = tuple[Tensor, Tensor]  # queries [T, H, K] and keys [T, G, K]


@dataclass(frozen=True, slots=True)
class HeadNorm:
    """RMSNorm of each head."""

    q_weight_K: Tensor
    k_weight_K: Tensor
    eps: float


def rotate(qk: Heads, angles: tuple[Tensor, Tensor], norm: HeadNorm | None = None) -> Heads:
    """Norm each head as `norm.rms_norm` does, then turn its pairs by the token's angle.

        y[j]     = x[j] cos[j] - x[j + J] sin[j]
        y[j + J] = x[j + J] cos[j] + x[j] sin[j]        float32, rounded once

    Args:
        qk: a token's heads lie side by side; tokens may be any stride apart.
        angles: cosines and sines of each token, [T, 1, J], contiguous, in the dtype of q.

    Returns:
        Queries and keys, contiguous.
    """
    return _launch(None, qk, angles, norm)


def rotate_backward(
    dqk: Heads,
    angles: tuple[Tensor, Tensor],
    norm: HeadNorm | None = None,
    qk: Heads | None = None,
) -> Heads:
    """Turn the gradients back, then through the norms, whose statistics are computed again.

    Args:
        dqk: gradients of the results of `rotate`, strided as its argument may be.
        qk: the argument of `rotate`; not needed without a norm.

    Returns:
        Gradients of queries and keys, contiguous.
    """
    if norm is not None and qk is None:
        raise ValueError("the gradient of a norm needs what was normed")
    return _launch(dqk, qk or dqk, angles, norm)


def all_variants(shape: ModelShape) -> Iterator[Variant]:
    """Every variant that a model of this shape can launch."""
    sizes = shape.num_heads, shape.num_kv_heads, shape.head_dim
    for dtype in (torch.bfloat16, torch.float32):
        for is_backward in (False, True):
            yield _variant(dtype, sizes, shape.has_qk_norm, is_backward, UNIT)


def _launch(
    dqk: Heads | None, qk: Heads, angles: tuple[Tensor, Tensor], norm: HeadNorm | None
) -> Heads:
    num_tokens, num_q, head_dim = qk[0].shape
    sizes = num_q, qk[1].shape[1], head_dim
    for table_T1J in angles:
        expected = num_tokens, 1, head_dim // 2
        if table_T1J.shape != expected or not table_T1J.is_contiguous():
            raise ValueError(f"angles {tuple(table_T1J.shape)} where contiguous {expected} are due")
    dq, dk = dqk or qk
    unit, strides = _strides({"q": qk[0], "k": qk[1], "dq": dq, "dk": dk})
    q_out, k_out = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in qk)
    weights = angles if norm is None else (norm.q_weight_K, norm.k_weight_K)
    block_heads, _ = _blocks(sizes)
    _variant(qk[0].dtype, sizes, norm is not None, dqk is not None, unit).launch(
        (num_tokens, sum(triton.cdiv(num, block_heads) for num in sizes[:2])),
        q_ptr=qk[0],
        k_ptr=qk[1],
        dq_ptr=dq,
        dk_ptr=dk,
        q_weight_ptr=weights[0],
        k_weight_ptr=weights[1],
        cos_ptr=angles[0],
        sin_ptr=angles[1],
        q_out_ptr=q_out,
        k_out_ptr=k_out,
        eps=0.0 if norm is None else norm.eps,
        **strides,
    )
    return q_out, k_out


def _strides(heads: dict[str, Tensor]) -> tuple[int, dict[str, int]]:
    """The unit, and the distance of tokens in units, of each [T, H, K]."""
    num_tokens, _, head_dim = heads["q"].shape
    for x_THK in heads.values():
        own_tokens, num_heads, width = x_THK.shape
        is_alike = (own_tokens, width, x_THK.dtype) == (num_tokens, head_dim, heads["q"].dtype)
        has_gaps = num_heads > 1 and x_THK.stride(1) != width
        if not is_alike or (x_THK.numel() and (has_gaps or x_THK.stride(2) != 1)):
            raise ValueError(
                f"{x_THK.dtype} heads {tuple(x_THK.shape)} with strides {x_THK.stride()}"
            )
    strides = {f"{name}_stride": x_THK.stride(0) for name, x_THK in heads.items()}
    unit = UNIT if all(size % UNIT == 0 for size in (head_dim // 2, *strides.values())) else 1
    return unit, {name: stride // unit for name, stride in strides.items()}


@lru_cache
def _variant(
    dtype: torch.dtype, sizes: tuple[int, int, int], has_norm: bool, is_backward: bool, unit: int
) -> Variant:
    num_q, num_k, head_dim = sizes
    operation = f"{'norm_' * has_norm}rotate{'_backward' * is_backward}"
    name = f"{operation} {type_name(dtype)} {num_q}+{num_k} heads of {head_dim}"
    if head_dim % 2 or not 0 < head_dim <= MAX_HEAD_DIM:
        raise UnknownVariant(f"{name}: the width is not even and from 2 to {MAX_HEAD_DIM}")
    block_heads, block_pairs = _blocks(sizes)
    pointers = ["q", "k", "dq", "dk", "q_weight", "k_weight", "cos", "sin", "q_out", "k_out"]
    return Variant(
        name=name,
        kernel=_rotate_kernel,
        types={
            **{f"{pointer}_ptr": f"*{type_name(dtype)}" for pointer in pointers},
            **{f"{pointer}_stride": "i32" for pointer in pointers[:4]},
            "eps": "fp32",
        },
        constants={
            "NUM_Q": num_q,
            "NUM_K": num_k,
            "PAIRS": head_dim // 2,
            "HAS_NORM": has_norm,
            "IS_BACKWARD": is_backward,
            "UNIT": unit,
            "BLOCK_H": block_heads,
            "BLOCK_J": block_pairs,
        },
        num_warps=2,
        num_stages=1,
    )


def _blocks(sizes: tuple[int, int, int]) -> tuple[int, int]:
    """Heads and pairs of a program's tile."""
    num_q, num_k, head_dim = sizes
    block_pairs = triton.next_power_of_2(max(1, head_dim // 2))
    most = triton.next_power_of_2(max(num_q, num_k))
    return min(max(1, TILE_PAIRS // block_pairs), most), block_pairs


@triton.jit(do_not_specialize=["q_stride", "k_stride", "dq_stride", "dk_stride"])
def _rotate_kernel(
    q_ptr,
    k_ptr,
    dq_ptr,
    dk_ptr,
    q_weight_ptr,
    k_weight_ptr,
    cos_ptr,
    sin_ptr,
    q_out_ptr,
    k_out_ptr,
    q_stride,
    k_stride,
    dq_stride,
    dk_stride,
    eps,
    NUM_Q: tl.constexpr,
    NUM_K: tl.constexpr,
    PAIRS: tl.constexpr,
    HAS_NORM: tl.constexpr,
    IS_BACKWARD: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_J: tl.constexpr,
):
    """A program takes some heads of one token: first come those of queries, then those of keys."""
    token, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    pairs = tl.arange(0, BLOCK_J)
    heads = tl.arange(0, BLOCK_H)
    cos = _for_each_head(cos_ptr + token * PAIRS, heads, pairs, PAIRS)
    sin = _for_each_head(sin_ptr + token * PAIRS, heads, pairs, PAIRS)
    NUM_Q_BLOCKS: tl.constexpr = (NUM_Q + BLOCK_H - 1) // BLOCK_H
    if block < NUM_Q_BLOCKS:
        q_ptr += token * q_stride * UNIT
        dq_ptr += token * dq_stride * UNIT
        q_out_ptr += token * (NUM_Q * 2 * PAIRS)
        heads += block * BLOCK_H
        if IS_BACKWARD:
            _rotate_back(
                dq_ptr, q_ptr, q_weight_ptr, q_out_ptr, cos, sin, heads, pairs, eps,
                NUM_Q, PAIRS, HAS_NORM,
            )  # fmt: skip
        else:
            _rotate(
                q_ptr, q_weight_ptr, q_out_ptr, cos, sin, heads, pairs, eps,
                NUM_Q, PAIRS, HAS_NORM,
            )  # fmt: skip
    else:
        k_ptr += token * k_stride * UNIT
        dk_ptr += token * dk_stride * UNIT
        k_out_ptr += token * (NUM_K * 2 * PAIRS)
        heads += (block - NUM_Q_BLOCKS) * BLOCK_H
        if IS_BACKWARD:
            _rotate_back(
                dk_ptr, k_ptr, k_weight_ptr, k_out_ptr, cos, sin, heads, pairs, eps,
                NUM_K, PAIRS, HAS_NORM,
            )  # fmt: skip
        else:
            _rotate(
                k_ptr, k_weight_ptr, k_out_ptr, cos, sin, heads, pairs, eps,
                NUM_K, PAIRS, HAS_NORM,
            )  # fmt: skip


@triton.jit
def _rotate(
    x_ptr,
    weight_ptr,
    out_ptr,
    cos,
    sin,
    heads,
    pairs,
    eps,
    NUM: tl.constexpr,
    PAIRS: tl.constexpr,
    HAS_NORM: tl.constexpr,
):
    """Norm and rotate heads of one token, whose first element is at `x_ptr`."""
    is_in = (heads[:, None] < NUM) & (pairs[None, :] < PAIRS)
    offsets = heads[:, None] * (2 * PAIRS) + pairs[None, :]
    first = tl.load(x_ptr + offsets, mask=is_in, other=0.0).to(tl.float32)
    second = tl.load(x_ptr + PAIRS + offsets, mask=is_in, other=0.0).to(tl.float32)
    if HAS_NORM:
        rstd = _rstd(first, second, eps, PAIRS)
        first_weight = _for_each_head(weight_ptr, heads, pairs, PAIRS)
        second_weight = _for_each_head(weight_ptr + PAIRS, heads, pairs, PAIRS)
        first = scaled_row(first, rstd, first_weight, out_ptr.dtype.element_ty)
        second = scaled_row(second, rstd, second_weight, out_ptr.dtype.element_ty)
        first = first.to(out_ptr.dtype.element_ty).to(tl.float32)
        second = second.to(out_ptr.dtype.element_ty).to(tl.float32)
    first_out = first * cos - second * sin
    second_out = second * cos + first * sin
    tl.store(out_ptr + offsets, first_out.to(out_ptr.dtype.element_ty), mask=is_in)
    tl.store(out_ptr + PAIRS + offsets, second_out.to(out_ptr.dtype.element_ty), mask=is_in)


@triton.jit
def _rotate_back(
    dy_ptr,
    x_ptr,
    weight_ptr,
    out_ptr,
    cos,
    sin,
    heads,
    pairs,
    eps,
    NUM: tl.constexpr,
    PAIRS: tl.constexpr,
    HAS_NORM: tl.constexpr,
):
    """The gradient of `_rotate`."""
    is_in = (heads[:, None] < NUM) & (pairs[None, :] < PAIRS)
    offsets = heads[:, None] * (2 * PAIRS) + pairs[None, :]
    first_dy = tl.load(dy_ptr + offsets, mask=is_in, other=0.0).to(tl.float32)
    second_dy = tl.load(dy_ptr + PAIRS + offsets, mask=is_in, other=0.0).to(tl.float32)
    first_g = first_dy * cos + second_dy * sin
    second_g = second_dy * cos - first_dy * sin
    if HAS_NORM:
        first = tl.load(x_ptr + offsets, mask=is_in, other=0.0).to(tl.float32)
        second = tl.load(x_ptr + PAIRS + offsets, mask=is_in, other=0.0).to(tl.float32)
        rstd = _rstd(first, second, eps, PAIRS)
        first_weight = _for_each_head(weight_ptr, heads, pairs, PAIRS)
        second_weight = _for_each_head(weight_ptr + PAIRS, heads, pairs, PAIRS)
        first_g *= first_weight
        second_g *= second_weight
        dot = tl.sum(first_g * first + second_g * second, axis=1)[:, None]
        share = dot / (2 * PAIRS) * rstd * rstd * rstd
        first_g = first_g * rstd - first * share
        second_g = second_g * rstd - second * share
    tl.store(out_ptr + offsets, first_g.to(out_ptr.dtype.element_ty), mask=is_in)
    tl.store(out_ptr + PAIRS + offsets, second_g.to(out_ptr.dtype.element_ty), mask=is_in)


@triton.jit
def _rstd(first, second, eps, PAIRS: tl.constexpr):
    """1 / root mean square of each head."""
    squares = tl.sum(first * first + second * second, axis=1)
    return tl.rsqrt(squares / (2 * PAIRS) + eps)[:, None]


@triton.jit
def _for_each_head(table_ptr, heads, pairs, PAIRS: tl.constexpr):
    """A row of a table as a tile of heads; loaded as one, it needs no exchange among threads."""
    cols = tl.broadcast_to(pairs[None, :], heads.shape[0], pairs.shape[0])
    return tl.load(table_ptr + cols, mask=cols < PAIRS, other=0.0).to(tl.float32)
