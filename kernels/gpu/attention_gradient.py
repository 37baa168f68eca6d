"""Gradients of causal attention inside packed sequences, without atomics.

With p the attention's weights, dp = dout v^T and delta = sum(out * dout) of each row:

    ds = p (dp - delta);   dq = scale ds k;   dk = scale ds^T q;   dv = p^T dout

One kernel has a program for each tile of rows and sums over keys, the other one for each tile of
keys and sums over rows, in order: token by token, and the R query heads of a token in turn.
T tokens; H query heads, G key and value heads, R = H / G, K head width.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention import (
    LOG2_E,
    block_rows,
    head_sizes,
    load_rows,
    max_partials,
    store_rows,
    with_adjacent_heads,
)
from .attention_tables import Counts, PackedTables, build_packed
from .device_ints import DeviceInts
from .shapes import ModelShape
from .variants import Variant, type_name


@triton.jit(do_not_specialize=["repeats"])
def _attention_dq_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    dout_ptr,
    lse_ptr,
    delta_ptr,
    dq_ptr,
    sequences_ptr,
    tiles_ptr,
    q_stride,
    k_stride,
    v_stride,
    out_stride,
    dout_stride,
    repeats,
    scale,
    HEAD_DIM: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    LOG2_E: tl.constexpr,
):
    """dq = scale sum_j ds_j k_j of a tile of rows; stores delta for the other kernel.

    Grid: tiles, key heads.
    """
    sequence = tl.load(tiles_ptr + tl.program_id(0) * 2)
    first_row = tl.load(tiles_ptr + tl.program_id(0) * 2 + 1)
    head, num_heads = tl.program_id(1), tl.num_programs(1) * repeats
    first_token = tl.load(sequences_ptr + sequence * 4)
    num_tokens = tl.load(sequences_ptr + sequence * 4 + 1)
    rows = first_row + tl.arange(0, BLOCK_M)
    is_row = rows < num_tokens * repeats
    positions = rows // repeats
    # Offsets from the tile's first token, in 32 bits.
    token = (first_token + first_row // repeats).to(tl.int64)
    tokens, heads = positions - first_row // repeats, head * repeats + rows % repeats
    cols = heads * HEAD_DIM
    q_ptr += token * q_stride
    dout_ptr += token * dout_stride
    out_ptr += token * out_stride
    q = load_rows(q_ptr, tokens * q_stride + cols, is_row, HEAD_DIM, BLOCK_K)
    dout = load_rows(dout_ptr, tokens * dout_stride + cols, is_row, HEAD_DIM, BLOCK_K)
    out = load_rows(out_ptr, tokens * out_stride + cols, is_row, HEAD_DIM, BLOCK_K)
    delta = tl.sum(out.to(tl.float32) * dout.to(tl.float32), 1)
    lse_rows = tokens * num_heads + heads
    tl.store(delta_ptr + token * num_heads + lse_rows, delta, mask=is_row)
    lse = tl.load(lse_ptr + token * num_heads + lse_rows, mask=is_row, other=0.0)
    k_ptr += head * HEAD_DIM
    v_ptr += head * HEAD_DIM
    end = tl.minimum((first_row + BLOCK_M - 1) // repeats + 1, num_tokens)
    acc = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
    for start in range(0, end, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        key_tokens = (first_token + keys).to(tl.int64)
        k = load_rows(k_ptr, key_tokens * k_stride, keys < end, HEAD_DIM, BLOCK_K)
        v = load_rows(v_ptr, key_tokens * v_stride, keys < end, HEAD_DIM, BLOCK_K)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        weights = tl.exp2(tl.fma(scores, scale * LOG2_E, -lse[:, None]))
        dweights = tl.dot(dout, tl.trans(v), input_precision="ieee")
        dscores = weights * (dweights - delta[:, None])
        dscores = tl.where(keys[None, :] <= positions[:, None], dscores, 0.0)
        acc = tl.dot(dscores.to(k.dtype), k, acc, input_precision="ieee")
    dq = (acc * scale).to(dq_ptr.dtype.element_ty)
    # Read and computed again: kept, they would cost registers in the loop.
    first_row = tl.load(tiles_ptr + tl.program_id(0) * 2 + 1, volatile=True)
    rows = first_row + tl.arange(0, BLOCK_M)
    dq_ptr += (first_token + first_row // repeats).to(tl.int64) * out_stride
    dq_rows = (rows // repeats - first_row // repeats) * out_stride + (
        head * repeats + rows % repeats
    ) * HEAD_DIM
    store_rows(dq_ptr, dq_rows, rows < num_tokens * repeats, dq, HEAD_DIM, BLOCK_K)


@triton.jit(do_not_specialize=["repeats"])
def _attention_dkv_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    dout_ptr,
    lse_ptr,
    delta_ptr,
    dk_ptr,
    dv_ptr,
    sequences_ptr,
    tiles_ptr,
    q_stride,
    k_stride,
    v_stride,
    dout_stride,
    dk_stride,
    repeats,
    scale,
    HEAD_DIM: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    LOG2_E: tl.constexpr,
):
    """dk = scale sum_i ds_i q_i and dv = sum_i p_i dout_i of a tile of keys.

    Grid: tiles, key heads.
    """
    sequence = tl.load(tiles_ptr + tl.program_id(0) * 2)
    first_key = tl.load(tiles_ptr + tl.program_id(0) * 2 + 1)
    head, num_heads = tl.program_id(1), tl.num_programs(1) * repeats
    first_token = tl.load(sequences_ptr + sequence * 4)
    num_tokens = tl.load(sequences_ptr + sequence * 4 + 1)
    keys = first_key + tl.arange(0, BLOCK_N)
    is_key = keys < num_tokens
    key_tokens = (first_token + keys).to(tl.int64)
    cols = head * HEAD_DIM
    k = load_rows(k_ptr + cols, key_tokens * k_stride, is_key, HEAD_DIM, BLOCK_K)
    v = load_rows(v_ptr + cols, key_tokens * v_stride, is_key, HEAD_DIM, BLOCK_K)
    dk = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    # From a multiple of the block on, so that blocks hold the same rows for every tile.
    for start in range(first_key * repeats // BLOCK_M * BLOCK_M, num_tokens * repeats, BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M)
        is_row = rows < num_tokens * repeats
        positions = rows // repeats
        token = (first_token + start // repeats).to(tl.int64)
        tokens, heads = positions - start // repeats, head * repeats + rows % repeats
        q_rows = tokens * q_stride + heads * HEAD_DIM
        q = load_rows(q_ptr + token * q_stride, q_rows, is_row, HEAD_DIM, BLOCK_K)
        dout_rows = tokens * dout_stride + heads * HEAD_DIM
        dout = load_rows(dout_ptr + token * dout_stride, dout_rows, is_row, HEAD_DIM, BLOCK_K)
        lse_rows = token * num_heads + (tokens * num_heads + heads)
        lse = tl.load(lse_ptr + lse_rows, mask=is_row, other=0.0)
        delta = tl.load(delta_ptr + lse_rows, mask=is_row, other=0.0)
        is_seen = (keys[:, None] <= positions[None, :]) & is_row[None, :]
        scores = tl.dot(k, tl.trans(q), input_precision="ieee")
        weights = tl.exp2(tl.fma(scores, scale * LOG2_E, -lse[None, :]))
        weights = tl.where(is_seen, weights, 0.0)
        dv = tl.dot(weights.to(dout.dtype), dout, dv, input_precision="ieee")
        dweights = tl.dot(v, tl.trans(dout), input_precision="ieee")
        dscores = tl.where(is_seen, weights * (dweights - delta[None, :]), 0.0)
        dk = tl.dot(dscores.to(q.dtype), q, dk, input_precision="ieee")
    dk = (dk * scale).to(dk_ptr.dtype.element_ty)
    # Read and computed again: kept, they would cost registers in the loop.
    first_key = tl.load(tiles_ptr + tl.program_id(0) * 2 + 1, volatile=True)
    is_key = first_key + tl.arange(0, BLOCK_N) < num_tokens
    cols += (first_token + first_key).to(tl.int64) * dk_stride
    offsets = tl.arange(0, BLOCK_N) * dk_stride
    store_rows(dk_ptr + cols, offsets, is_key, dk, HEAD_DIM, BLOCK_K)
    store_rows(dv_ptr + cols, offsets, is_key, dv.to(dv_ptr.dtype.element_ty), HEAD_DIM, BLOCK_K)


@lru_cache(maxsize=64)
def dq_variant(head_dim: int, dtype: torch.dtype) -> Variant:
    """What computes dq; see `attention.forward_variant`."""
    strides = ("q_stride", "k_stride", "v_stride", "out_stride", "dout_stride")
    tensors = ("q_ptr", "k_ptr", "v_ptr", "out_ptr", "dout_ptr", "dq_ptr")
    kernel = _attention_dq_kernel
    return _variant("dq", kernel, tensors, strides, head_dim, dtype)


@lru_cache(maxsize=64)
def dkv_variant(head_dim: int, dtype: torch.dtype) -> Variant:
    """What computes dk and dv; see `attention.forward_variant`."""
    strides = ("q_stride", "k_stride", "v_stride", "dout_stride", "dk_stride")
    tensors = ("q_ptr", "k_ptr", "v_ptr", "dout_ptr", "dk_ptr", "dv_ptr")
    kernel = _attention_dkv_kernel
    return _variant("dkv", kernel, tensors, strides, head_dim, dtype)


def _variant(
    what: str,
    kernel: Any,
    tensors: tuple[str, ...],
    strides: tuple[str, ...],
    head_dim: int,
    dtype: torch.dtype,
) -> Variant:
    kind = type_name(dtype)
    rows, keys = gradient_blocks(head_dim, dtype)[what]
    return Variant(
        name=f"attention_{what} {kind}, heads of {head_dim}",
        kernel=kernel,
        types={
            **dict.fromkeys(tensors, f"*{kind}"),
            **dict.fromkeys(("lse_ptr", "delta_ptr"), "*fp32"),
            **dict.fromkeys(("sequences_ptr", "tiles_ptr"), "*i32"),
            **dict.fromkeys((*strides, "repeats"), "i32"),
            "scale": "fp32",
        },
        constants={
            **head_sizes(head_dim, dtype),
            "BLOCK_M": rows,
            "BLOCK_N": keys,
            "LOG2_E": LOG2_E,
        },
        num_warps=8,
        num_stages=2,
        has_dot=kind == "bf16",
        multiples_of_16=strides,
        max_narrow_loads=72,  # two numbers for each query row; Triton 3.6 repeats them
    )


def gradient_blocks(head_dim: int, dtype: torch.dtype) -> dict[str, tuple[int, int]]:
    """Query rows and keys of a block, of each of the two kernels."""
    if dtype == torch.float32:
        return {
            "dq": (32, 32 if head_dim <= 128 else 16),
            "dkv": (16, 32 if head_dim <= 128 else 16),
        }
    if head_dim > 128:
        return {"dq": (64, 32), "dkv": (32, 32)}
    return {"dq": (128, 64), "dkv": (64, 64)}


def all_variants(shape: ModelShape) -> Iterator[Variant]:
    """Every form that a model of this shape can ask for."""
    for dtype in (torch.bfloat16, torch.float32):
        yield dq_variant(shape.head_dim, dtype)
        yield dkv_variant(shape.head_dim, dtype)


def attend_gradient(
    dout_THK: Tensor,
    q_THK: Tensor,
    k_TGK: Tensor,
    v_TGK: Tensor,
    out_THK: Tensor,
    lse_TH: Tensor,
    tables: PackedTables,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v; zero in rows of no sequence.

    Args:
        out_THK, lse_TH: what `attention.attend` returned for q, k, v, tables and scale.

    Raises:
        UnknownVariant: there is none for this head width or dtype.

    Source: Dao et al., "FlashAttention", 2022, algorithm 4.
    """
    dout, q, k, v = (with_adjacent_heads(x) for x in (dout_THK, q_THK, k_TGK, v_TGK))
    dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
    for gradient in (dq, dk, dv):
        gradient[tables.num_tokens :].zero_()
    shared = {
        "q_ptr": q,
        "k_ptr": k,
        "v_ptr": v,
        "dout_ptr": dout,
        "lse_ptr": lse_TH,
        "delta_ptr": torch.empty_like(lse_TH),
        "sequences_ptr": tables.forward.sequences,
        "q_stride": q.stride(0),
        "k_stride": k.stride(0),
        "v_stride": v.stride(0),
        "dout_stride": dout.stride(0),
        "repeats": q.shape[1] // k.shape[1],
        "scale": scale,
    }
    dq_variant(q.shape[2], q.dtype).launch(
        (len(tables.query_tiles), k.shape[1]),
        out_ptr=out_THK,
        dq_ptr=dq,
        tiles_ptr=tables.query_tiles,
        out_stride=dq.stride(0),
        **shared,
    )
    dkv_variant(q.shape[2], q.dtype).launch(
        (len(tables.key_tiles), k.shape[1]),
        dk_ptr=dk,
        dv_ptr=dv,
        tiles_ptr=tables.key_tiles,
        dk_stride=dk.stride(0),
        **shared,
    )
    return dq, dk, dv


def build_tables(
    bounds: Counts,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    memory: DeviceInts,
) -> PackedTables:
    """The tables of a packed batch for `attention.attend` and `attend_gradient`.

    Args:
        bounds: of the sequences, [N + 1] from 0.

    Raises:
        UnknownVariant: there is none for this head width or dtype.
    """
    blocks = gradient_blocks(head_dim, dtype)
    return build_packed(
        bounds,
        num_heads // num_kv_heads,
        forward_rows=block_rows(head_dim, dtype),
        query_rows=blocks["dq"][0],
        key_rows=blocks["dkv"][1],
        max_partials=max_partials(num_kv_heads, head_dim),
        memory=memory,
    )
