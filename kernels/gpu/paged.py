"""Causal attention over keys and values in pages: prefill, its later pieces, and decode.

The kernel and its sums are those of `attention`; a launch before it stores the new keys and values.
T rows of a step, H query heads, G key and value heads, K head width, P pages, S tokens of a page,
N sequences.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention import (
    DECODE_ROWS,
    block_rows,
    forward_variant,
    head_sizes,
    launch_items,
    load_rows,
    max_partials,
    merge_variant,
    store_rows,
    with_adjacent_heads,
)
from .attention_tables import Counts, Items, ItemTables, Sequences, list_items
from .device_ints import DeviceInts, Int32s
from .shapes import ModelShape
from .variants import Variant, type_name

PUBLISHED_PAGE_SIZE = 16  # tokens; other sizes work, but are not checked ahead of time
STORE_ROWS = 32


@triton.jit(do_not_specialize=["num_rows"])
def _store_pages_kernel(
    k_ptr,
    v_ptr,
    k_pages_ptr,
    v_pages_ptr,
    slots_ptr,
    num_rows,
    k_stride,
    v_stride,
    page_stride,
    PAGE_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """Copy the keys and values of new rows to their slots: page * PAGE_SIZE + place in it.

    Grid: blocks of rows, key heads.
    """
    rows = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    is_row = rows < num_rows
    slots = tl.load(slots_ptr + rows, mask=is_row, other=0)
    head = tl.program_id(1)
    places = (slots // PAGE_SIZE).to(tl.int64) * page_stride
    places += (head * PAGE_SIZE + slots % PAGE_SIZE) * HEAD_DIM
    offsets = rows.to(tl.int64)
    k = load_rows(k_ptr + head * HEAD_DIM, offsets * k_stride, is_row, HEAD_DIM, BLOCK_K)
    store_rows(k_pages_ptr, places, is_row, k, HEAD_DIM, BLOCK_K)
    v = load_rows(v_ptr + head * HEAD_DIM, offsets * v_stride, is_row, HEAD_DIM, BLOCK_K)
    store_rows(v_pages_ptr, places, is_row, v, HEAD_DIM, BLOCK_K)


@lru_cache(maxsize=64)
def store_variant(head_dim: int, dtype: torch.dtype, page_size: int) -> Variant:
    """What writes new keys and values; see `attention.forward_variant`."""
    kind, sizes = type_name(dtype), head_sizes(head_dim, dtype)
    strides = ("k_stride", "v_stride", "page_stride")
    tensors = ("k_ptr", "v_ptr", "k_pages_ptr", "v_pages_ptr")
    return Variant(
        name=f"store_pages {kind}, heads of {head_dim}, pages of {page_size}",
        kernel=_store_pages_kernel,
        types={
            **dict.fromkeys(tensors, f"*{kind}"),
            "slots_ptr": "*i32",
            **dict.fromkeys(("num_rows", *strides), "i32"),
        },
        constants={"PAGE_SIZE": page_size, **sizes, "BLOCK_T": STORE_ROWS},
        multiples_of_16=strides,
        max_narrow_loads=8,
    )


def all_variants(shape: ModelShape) -> Iterator[Variant]:
    """Every form that a model of this shape can ask for."""
    size = PUBLISHED_PAGE_SIZE
    for dtype in (torch.bfloat16, torch.float32):
        yield store_variant(shape.head_dim, dtype, size)
        yield forward_variant(shape.head_dim, dtype, page_size=size)
        yield forward_variant(shape.head_dim, dtype, page_size=size, for_decode=True)
        yield merge_variant(shape.head_dim, dtype, for_decode=True)


@dataclass(frozen=True, slots=True, eq=False)
class PagedTables:
    """A step on the device."""

    num_rows: int  # of all sequences; those of the step beyond belong to nobody
    page_size: int
    slots: Tensor  # [rows] where the keys of each row go
    pages: Tensor  # pages of all sequences, one after the other
    whole: ItemTables  # sequences with many new rows, or all of them
    decode: ItemTables  # sequences with few


def build_paged(
    tables_NP: np.ndarray,
    cached_N: Counts,
    fresh_N: Counts,
    *,
    page_size: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    is_deterministic: bool,
    memory: DeviceInts,
) -> PagedTables:
    """The tables of a step.

    Args:
        tables_NP: pages of each sequence in order; entries beyond those in use are ignored.
        cached_N: tokens of each sequence that are in its pages already.
        fresh_N: new rows of each, at least 1; the step's rows are the sequences' in this order.
        is_deterministic: a row must have the bits that it would have in another phase: all rows
            are computed in the blocks of prefill.

    Raises:
        UnknownVariant: there is none for this head width or dtype.
    """
    repeats, ends = num_heads // num_kv_heads, np.cumsum(fresh_N)
    num_pages = -(-(cached_N + fresh_N) // page_size)
    sequences = Sequences(ends - fresh_N, fresh_N, cached_N, np.cumsum(num_pages) - num_pages)
    pages = tables_NP[np.arange(tables_NP.shape[1]) < num_pages[:, None]]
    owner = np.repeat(np.arange(len(fresh_N)), fresh_N)
    positions = np.arange(len(owner)) + (cached_N - ends + fresh_N)[owner]
    slots = tables_NP[owner, positions // page_size] * page_size + positions % page_size
    is_small = fresh_N * repeats <= DECODE_ROWS
    is_decode = is_small & (not is_deterministic)
    limit = max_partials(num_kv_heads, head_dim)
    rows = block_rows(head_dim, dtype)
    parts: list[Items] = []
    arrays: list[Int32s] = [slots.astype(np.int32), pages.astype(np.int32)]
    for chosen, size in ((~is_decode, rows), (is_decode, DECODE_ROWS)):
        part = sequences.where(chosen)
        parts.append(list_items(part, repeats, block_rows=size, max_partials=limit))
        arrays += [part.table(), parts[-1].items, parts[-1].merges]
    on_device = memory.write(arrays)
    return PagedTables(
        len(owner),
        page_size,
        on_device[0],
        on_device[1],
        ItemTables.of(on_device[2:5], parts[0]),
        ItemTables.of(on_device[5:8], parts[1]),
    )


def store_pages(k_TGK: Tensor, v_TGK: Tensor, storage: Tensor, tables: PagedTables) -> None:
    """Write the keys and values of the step's rows to their pages.

    Args:
        storage: of one layer, [2, P, G, S, K], contiguous; keys first.
    """
    k, v = with_adjacent_heads(k_TGK), with_adjacent_heads(v_TGK)
    store_variant(k.shape[2], k.dtype, tables.page_size).launch(
        (triton.cdiv(tables.num_rows, STORE_ROWS), k.shape[1]),
        k_ptr=k,
        v_ptr=v,
        k_pages_ptr=storage[0],
        v_pages_ptr=storage[1],
        slots_ptr=tables.slots,
        num_rows=tables.num_rows,
        k_stride=k.stride(0),
        v_stride=v.stride(0),
        page_stride=storage.stride(1),
    )


def attend_pages(q_THK: Tensor, storage: Tensor, tables: PagedTables, scale: float) -> Tensor:
    """Attention of each new row to all tokens of its sequence up to itself, [T, H, K].

    Values as in `attention.attend`; rows of no sequence are zero.

    Args:
        storage: of one layer, with the keys and values of the new rows; see `store_pages`.
        scale: above 0.
    """
    q, page_size = with_adjacent_heads(q_THK), tables.page_size
    out_THK = q.new_empty(q.shape)
    out_THK[tables.num_rows :].zero_()
    lse_TH = q.new_empty(q.shape[:2], dtype=torch.float32)
    for items, is_decode in ((tables.whole, False), (tables.decode, True)):
        launch_items(
            forward_variant(q.shape[2], q.dtype, page_size=page_size, for_decode=is_decode),
            merge_variant(q.shape[2], q.dtype, for_decode=is_decode),
            items,
            q,
            storage[0],
            storage[1],
            out_THK,
            lse_TH,
            pages=tables.pages,
            kv_strides=(storage.stride(1), storage.stride(1)),
            num_kv_heads=storage.shape[2],
            scale=scale,
        )
    return out_THK
