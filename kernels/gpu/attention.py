"""Causal attention forward, over packed sequences or pages; one kernel for all phases.

    out[i] = sum_j p_j v_j / sum_j p_j,    p_j = exp(scale q_i k_j),    j = 0 .. position of row i

The sums are always taken in the same order, of training, prefill and decode. The keys of a sequence
are cut into splits of `SPLIT`, counted from its first key. A split is summed from zero, block by
block, under a running maximum, by one program; then the splits are merged in order. So a decoded
row, whose splits are spread over the device, has the bits of the same row in a prefill of the whole
sequence or in training, if all three use the same blocks.
T tokens; H query heads, G key and value heads, R = H / G, K head width.
"""

from collections.abc import Iterator
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention_tables import SPLIT, ItemTables, PackedTables
from .shapes import ModelShape
from .variants import UnknownVariant, Variant, type_name

DECODE_ROWS = 16  # query rows of a program where only a token or a few are computed
MAX_HEAD_DIM = 256
MERGE_ROWS = 16
PARTIAL_BYTES = 64 << 20  # memory for sums of splits that wait to be merged
LOG2_E = 1.4426950408889634


@triton.jit
def load_rows(base_ptr, offsets, is_row, HEAD_DIM: tl.constexpr, BLOCK_K: tl.constexpr):
    """[rows, BLOCK_K]; zero in rows that are none and in columns beyond the head's width."""
    cols = tl.arange(0, BLOCK_K)
    mask = is_row[:, None]
    if HEAD_DIM != BLOCK_K:
        mask = mask & (cols < HEAD_DIM)[None, :]
    return tl.load(base_ptr + offsets[:, None] + cols[None, :], mask=mask, other=0.0)


@triton.jit
def store_rows(base_ptr, offsets, is_row, values, HEAD_DIM: tl.constexpr, BLOCK_K: tl.constexpr):
    """The reverse of `load_rows`."""
    cols = tl.arange(0, BLOCK_K)
    mask = is_row[:, None]
    if HEAD_DIM != BLOCK_K:
        mask = mask & (cols < HEAD_DIM)[None, :]
    tl.store(base_ptr + offsets[:, None] + cols[None, :], values, mask=mask)


@triton.jit(do_not_specialize=["repeats"])
def _attention_fwd_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    lse_ptr,
    partial_ptr,
    partial_top_ptr,
    partial_mass_ptr,
    sequences_ptr,
    items_ptr,
    pages_ptr,
    q_stride,
    k_stride,
    v_stride,
    out_stride,
    repeats,
    scale,
    PAGE_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """One split of the keys of a tile of rows: the result, or a partial one for `_merge_kernel`.

    `scale` contains log2(e), so exponents are of base 2, and lse = log2 sum_j 2^(scale q k_j).
    With PAGE_SIZE 0 keys are rows of a packed batch; otherwise of pages that a table lists, whose
    stride is that of a page. Grid: items, key heads.
    """
    item = items_ptr + tl.program_id(0) * 4
    sequence = sequences_ptr + tl.load(item) * 4
    first_row, split, partial = tl.load(item + 1), tl.load(item + 2), tl.load(item + 3)
    head, num_kv_heads = tl.program_id(1), tl.num_programs(1)
    first_token, num_tokens = tl.load(sequence), tl.load(sequence + 1)
    num_cached, first_key = tl.load(sequence + 2), tl.load(sequence + 3)
    rows = first_row + tl.arange(0, BLOCK_M)
    is_row = rows < num_tokens * repeats
    positions = num_cached + rows // repeats
    # Offsets from the tile's first token, in 32 bits.
    token = (first_token + first_row // repeats).to(tl.int64)
    tokens, heads = rows // repeats - first_row // repeats, head * repeats + rows % repeats
    q_rows = tokens * q_stride + heads * HEAD_DIM
    q = load_rows(q_ptr + token * q_stride, q_rows, is_row, HEAD_DIM, BLOCK_K)
    end = num_cached + tl.minimum((first_row + BLOCK_M - 1) // repeats + 1, num_tokens)
    if PAGE_SIZE == 0:
        k_ptr += head * HEAD_DIM
        v_ptr += head * HEAD_DIM
    else:
        k_ptr += head * PAGE_SIZE * HEAD_DIM
        v_ptr += head * PAGE_SIZE * HEAD_DIM

    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    mass = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
    for start in range(split * SPLIT, tl.minimum(split * SPLIT + SPLIT, end), BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        is_key = keys < end
        if PAGE_SIZE == 0:
            k_rows = (first_key + keys).to(tl.int64) * k_stride
            v_rows = (first_key + keys).to(tl.int64) * v_stride
        else:
            pages = tl.load(pages_ptr + first_key + keys // PAGE_SIZE, mask=is_key, other=0)
            k_rows = pages.to(tl.int64) * k_stride + keys % PAGE_SIZE * HEAD_DIM
            v_rows = pages.to(tl.int64) * v_stride + keys % PAGE_SIZE * HEAD_DIM
        k = load_rows(k_ptr, k_rows, is_key, HEAD_DIM, BLOCK_K)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        scores = tl.where(keys[None, :] <= positions[:, None], scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1) * scale)
        # A row may see no key of a split that others of its tile see.
        reference = tl.where(new_top == float("-inf"), 0.0, new_top)
        weights = tl.exp2(tl.fma(scores, scale, -reference[:, None]))
        alpha = tl.exp2(top - reference)
        mass = tl.fma(mass, alpha, tl.sum(weights, 1))
        v = load_rows(v_ptr, v_rows, is_key, HEAD_DIM, BLOCK_K)
        acc = tl.dot(weights.to(v.dtype), v, acc * alpha[:, None], input_precision="ieee")
        top = new_top

    # Read and computed again: kept, they would cost registers in the loop.
    first_row = tl.load(item + 1, volatile=True)
    rows = first_row + tl.arange(0, BLOCK_M)
    is_row = rows < num_tokens * repeats
    token = (first_token + first_row // repeats).to(tl.int64)
    tokens, heads = rows // repeats - first_row // repeats, head * repeats + rows % repeats
    if partial < 0:
        out = (acc / mass[:, None]).to(out_ptr.dtype.element_ty)
        out_rows = tokens * out_stride + heads * HEAD_DIM
        store_rows(out_ptr + token * out_stride, out_rows, is_row, out, HEAD_DIM, BLOCK_K)
        lse_ptr += token * num_kv_heads * repeats
        tl.store(
            lse_ptr + tokens * num_kv_heads * repeats + heads, top + tl.log2(mass), mask=is_row
        )
    else:
        places = (partial + tl.arange(0, BLOCK_M)).to(tl.int64) * num_kv_heads + head
        tl.store(partial_top_ptr + places, top, mask=is_row)
        tl.store(partial_mass_ptr + places, mass, mask=is_row)
        store_rows(partial_ptr, places * HEAD_DIM, is_row, acc, HEAD_DIM, BLOCK_K)


@triton.jit(do_not_specialize=["repeats"])
def _merge_kernel(
    partial_ptr,
    partial_top_ptr,
    partial_mass_ptr,
    out_ptr,
    lse_ptr,
    sequences_ptr,
    merges_ptr,
    out_stride,
    repeats,
    HEAD_DIM: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    TILE: tl.constexpr,
):
    """Add up the splits of a tile's rows, in order, and store the result.

    A split in which a row sees no key changes nothing. Products and sums are fused by name, so that
    no compiler chooses. Grid: tiles with several splits, key heads, pieces of BLOCK_M rows of TILE.
    """
    merge = merges_ptr + tl.program_id(0) * 4
    sequence = sequences_ptr + tl.load(merge) * 4
    first_row, num_splits = tl.load(merge + 1), tl.load(merge + 2)
    partial = tl.load(merge + 3)
    head, num_kv_heads = tl.program_id(1), tl.num_programs(1)
    first_token, num_tokens = tl.load(sequence), tl.load(sequence + 1)
    tile_rows = tl.minimum(num_tokens * repeats - first_row, TILE)
    local = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    is_row = local < tile_rows
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    mass = tl.zeros([BLOCK_M], tl.float32)
    total = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
    for split in range(num_splits):
        places = (partial + split * tile_rows + local).to(tl.int64) * num_kv_heads + head
        split_top = tl.load(partial_top_ptr + places, mask=is_row, other=0.0)
        split_mass = tl.load(partial_mass_ptr + places, mask=is_row, other=0.0)
        acc = load_rows(partial_ptr, places * HEAD_DIM, is_row, HEAD_DIM, BLOCK_K)
        new_top = tl.maximum(top, split_top)
        alpha, beta = tl.exp2(top - new_top), tl.exp2(split_top - new_top)
        mass = tl.fma(mass, alpha, split_mass * beta)
        total = tl.fma(total, alpha[:, None], acc * beta[:, None])
        top = new_top
    rows = first_row + local
    tokens = (first_token + rows // repeats).to(tl.int64)
    heads = head * repeats + rows % repeats
    out = (total / mass[:, None]).to(out_ptr.dtype.element_ty)
    store_rows(out_ptr, tokens * out_stride + heads * HEAD_DIM, is_row, out, HEAD_DIM, BLOCK_K)
    tl.store(lse_ptr + tokens * num_kv_heads * repeats + heads, top + tl.log2(mass), mask=is_row)


@lru_cache(maxsize=256)
def forward_variant(
    head_dim: int,
    dtype: torch.dtype,
    *,
    page_size: int = 0,
    for_decode: bool = False,
) -> Variant:
    """What attends with heads of this width.

    Args:
        page_size: tokens of a page, 0 for a packed batch.
        for_decode: in tiles of `DECODE_ROWS` rows.

    Raises:
        UnknownVariant: there is none for this head width or dtype.
    """
    kind, sizes = type_name(dtype), head_sizes(head_dim, dtype)
    rows = DECODE_ROWS if for_decode else block_rows(head_dim, dtype)
    place = f"pages of {page_size}" if page_size else "packed"
    strides = ("q_stride", "k_stride", "v_stride", "out_stride")
    partials = ("partial_ptr", "partial_top_ptr", "partial_mass_ptr")
    return Variant(
        name=f"attention_fwd {kind}, heads of {head_dim}, {rows} rows, {place}",
        kernel=_attention_fwd_kernel,
        types={
            **dict.fromkeys(("q_ptr", "k_ptr", "v_ptr", "out_ptr"), f"*{kind}"),
            **dict.fromkeys(("lse_ptr", *partials), "*fp32"),
            **dict.fromkeys(("sequences_ptr", "items_ptr", "pages_ptr"), "*i32"),
            **dict.fromkeys((*strides, "repeats"), "i32"),
            "scale": "fp32",
        },
        constants={
            "PAGE_SIZE": page_size,
            **sizes,
            "BLOCK_M": rows,
            "BLOCK_N": block_keys(head_dim, dtype),
            "SPLIT": SPLIT,
        },
        num_warps=4 if for_decode and kind == "bf16" else 8,
        num_stages=3 if for_decode and head_dim <= 128 else 2,
        has_dot=kind == "bf16",
        multiples_of_16=strides,
        max_narrow_loads=40 if page_size else 16,  # a page's number for each row of keys
    )


@lru_cache(maxsize=256)
def merge_variant(head_dim: int, dtype: torch.dtype, *, for_decode: bool = False) -> Variant:
    """What adds up splits; see `forward_variant`."""
    kind, sizes = type_name(dtype), head_sizes(head_dim, dtype)
    rows = DECODE_ROWS if for_decode else block_rows(head_dim, dtype)
    return Variant(
        name=f"attention_merge {kind}, heads of {head_dim}, {rows} rows",
        kernel=_merge_kernel,
        types={
            **dict.fromkeys(("partial_ptr", "partial_top_ptr", "partial_mass_ptr"), "*fp32"),
            "out_ptr": f"*{kind}",
            "lse_ptr": "*fp32",
            **dict.fromkeys(("sequences_ptr", "merges_ptr"), "*i32"),
            **dict.fromkeys(("out_stride", "repeats"), "i32"),
        },
        constants={**sizes, "BLOCK_M": MERGE_ROWS, "TILE": rows},
        multiples_of_16=("out_stride",),
        max_narrow_loads=16,
    )


def head_sizes(head_dim: int, dtype: torch.dtype) -> dict[str, int]:
    """A head's width, and the power of two that it is computed as.

    Raises:
        UnknownVariant: no kernel was compiled for it.
    """
    if not 0 < head_dim <= MAX_HEAD_DIM:
        kind = type_name(dtype)
        raise UnknownVariant(f"attention {kind}, heads of {head_dim}, of {MAX_HEAD_DIM} at most")
    return {"HEAD_DIM": head_dim, "BLOCK_K": max(16, triton.next_power_of_2(head_dim))}


def block_rows(head_dim: int, dtype: torch.dtype) -> int:
    """Query rows of a tile in training and prefill: as many as the registers of 8 warps hold."""
    if dtype == torch.float32:
        return 32
    return 128 if head_dim <= 128 else 64


def block_keys(head_dim: int, dtype: torch.dtype) -> int:
    """Keys of a block; the order of the sums depends on it."""
    if dtype == torch.float32:
        return 16
    return 64 if head_dim <= 128 else 32


def all_variants(shape: ModelShape) -> Iterator[Variant]:
    """Every form of forward over packed sequences that a model of this shape can ask for."""
    for dtype in (torch.bfloat16, torch.float32):
        yield forward_variant(shape.head_dim, dtype)
        yield merge_variant(shape.head_dim, dtype)


def attend(
    q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor, tables: PackedTables, scale: float
) -> tuple[Tensor, Tensor]:
    """Causal attention of every sequence of a packed batch to itself.

        out[t, h] = sum_j p_j v[j, h // R],    p = softmax(scale q[t, h] k[j, h // R]), j = 0 .. t

    Args:
        q_THK, k_TGK, v_TGK: heads adjacent; tokens may lie further apart.
        tables: made for R by `build_packed`.
        scale: above 0.

    Returns:
        The output, zero in rows of no sequence, and log2 of the sum of exponentials, [T, H]
        float32, which the gradients need.

    Raises:
        UnknownVariant: there is none for this head width or dtype.

    Source: Dao et al., "FlashAttention", 2022, algorithm 1; Dao, "FlashAttention-2", 2023, for the
    splits; heads that share keys as rows of one tile, Ainslie et al., "GQA", 2023. The oracle is
    `reference.causal_attention`.
    """
    q, k, v = (with_adjacent_heads(x) for x in (q_THK, k_TGK, v_TGK))
    out_THK = q.new_empty(q.shape)
    out_THK[tables.num_tokens :].zero_()
    lse_TH = q.new_empty(q.shape[:2], dtype=torch.float32)
    launch_items(
        forward_variant(q.shape[2], q.dtype),
        merge_variant(q.shape[2], q.dtype),
        tables.forward,
        q,
        k,
        v,
        out_THK,
        lse_TH,
        pages=tables.forward.sequences,
        kv_strides=(k.stride(0), v.stride(0)),
        num_kv_heads=k.shape[1],
        scale=scale,
    )
    return out_THK, lse_TH


def launch_items(
    variant: Variant,
    merge: Variant,
    tables: ItemTables,
    q_THK: Tensor,
    k: Tensor,
    v: Tensor,
    out_THK: Tensor,
    lse_TH: Tensor,
    *,
    pages: Tensor,
    kv_strides: tuple[int, int],
    num_kv_heads: int,
    scale: float,
) -> None:
    """Run items and merges, group by group, whose partial results take turns in the same memory."""
    if not len(tables.items):
        return
    num_heads, head_dim = q_THK.shape[1:]
    shape = tables.host.num_partials, num_kv_heads
    partial_PGK = q_THK.new_empty(*shape, head_dim, dtype=torch.float32)
    top_PG, mass_PG = (q_THK.new_empty(shape, dtype=torch.float32) for _ in range(2))
    shared = {
        "partial_ptr": partial_PGK,
        "partial_top_ptr": top_PG,
        "partial_mass_ptr": mass_PG,
        "out_ptr": out_THK,
        "lse_ptr": lse_TH,
        "sequences_ptr": tables.sequences,
        "out_stride": num_heads * head_dim,
        "repeats": num_heads // num_kv_heads,
    }
    for items, merges in tables.groups():
        variant.launch(
            (len(items), num_kv_heads),
            q_ptr=q_THK,
            k_ptr=k,
            v_ptr=v,
            items_ptr=items,
            pages_ptr=pages,
            q_stride=q_THK.stride(0),
            k_stride=kv_strides[0],
            v_stride=kv_strides[1],
            scale=scale * LOG2_E,
            **shared,
        )
        if len(merges):
            pieces = -(-merge.constants["TILE"] // MERGE_ROWS)
            merge.launch((len(merges), num_kv_heads, pieces), merges_ptr=merges, **shared)


def max_partials(num_kv_heads: int, head_dim: int) -> int:
    """Rows of partial results that `PARTIAL_BYTES` hold."""
    return max(1, PARTIAL_BYTES // (4 * num_kv_heads * (head_dim + 2)))


def with_adjacent_heads(x_THK: Tensor) -> Tensor:
    """The same, copied if the heads of a token do not lie side by side."""
    is_adjacent = x_THK.stride(2) == 1 and x_THK.stride(1) == x_THK.shape[2]
    return x_THK if is_adjacent else x_THK.contiguous()
