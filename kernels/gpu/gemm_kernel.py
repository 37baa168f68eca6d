"""The kernel of products with frozen weights, with adapters inside or without, and its forms.

T rows; K is summed over and N remains.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import product

import torch
import triton
import triton.language as tl

from .records import (
    block_place,
    bucket_tiles,
    segment_adapter,
    segment_rows,
    site_place,
    tile_record,
)
from .shapes import ModelShape
from .tiles import BUCKETS
from .variants import UnknownVariant, Variant, type_name


@dataclass(frozen=True, slots=True)
class Blocks:
    """How products of one element type are cut, on every device."""

    heights: tuple[int, ...]  # rows of a program, the least that holds what there is
    block_n: int
    block_k: int
    num_stages: int
    group: int  # tiles of rows whose programs run together, so that weights come from L2
    few_rows: int = 0  # up to which programs are low and narrow, so that many read the weights
    narrow_n: int = 0
    narrow_stages: int = 0

    def width(self, is_narrow: bool) -> int:
        """Columns of a program."""
        return self.narrow_n if is_narrow else self.block_n


# All forms of bfloat16 multiply in the same order by instructions of the same kind, whose length
# alone differs (m64n64k16 and m64n256k16 on sm_90). 144 KB of shared memory on sm_90 and 96 on
# sm_80 for 128 rows. 16 programs would read a weight of 4096 outputs, were there no narrow ones.
BLOCKS = {
    torch.bfloat16: Blocks(
        (64, 128),
        block_n=256,
        block_k=64,
        num_stages=3,
        group=8,
        few_rows=128,
        narrow_n=64,
        narrow_stages=6,
    ),
    torch.float32: Blocks((128,), block_n=128, block_k=32, num_stages=3, group=8),
}
ROWS_PER_WARP = 16
MAX_RANK_BLOCK = 32  # rank rows of one product; 64 spills on sm_80

_COUNTS = ("num_rows", "site", "half", "num_sites", "num_summed", "s_units", "granule_units")
_WIDTHS = ("width_k", "width_n", "stride_xt", "stride_yt", "pitch")
_TABLES = ("header_ptr", "tiles_ptr", "segments_ptr")
_ADAPTERS = ("table_ptr", "s_ptr", "adapters_ptr")


@triton.jit(do_not_specialize=_COUNTS)
def _gemm_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    header_ptr,
    tiles_ptr,
    segments_ptr,
    table_ptr,
    s_ptr,
    adapters_ptr,
    num_rows,
    width_k,
    width_n,
    stride_xt,
    stride_yt,
    site,
    half,
    num_sites,
    num_summed,
    s_units,
    granule_units,
    pitch,
    BUCKET: tl.constexpr,
    BUCKET_INDEX: tl.constexpr,
    IS_FORWARD: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    IS_EVEN_K: tl.constexpr,
    IS_EVEN_N: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    GROUP: tl.constexpr,
):
    """y[t, n] (+)= sum_k x[t, k] W[n, k] + sum over sites and r of s[t, r] w[r, n] + bias[n].

    W[k, n] where not IS_FORWARD. A program takes BLOCK_N columns of a tile of rows. Without
    tiles_ptr a tile is BLOCK_T rows of the batch; with it, one of a bucket in the plan, which has
    up to BLOCK_T rows of one adapter.
    """
    num_n = tl.cdiv(width_n, BLOCK_N)
    if tiles_ptr is None:
        num_tiles = tl.cdiv(num_rows, BLOCK_T)
    else:
        first_tile, num_tiles = bucket_tiles(header_ptr, BUCKET_INDEX)
    if tl.program_id(0) >= num_tiles * num_n:
        return
    group = tl.program_id(0) // (GROUP * num_n)
    member = tl.program_id(0) % (GROUP * num_n)
    group_tiles = tl.minimum(num_tiles - group * GROUP, GROUP)
    tile = group * GROUP + member % group_tiles
    col = (member // group_tiles) * BLOCK_N
    if tiles_ptr is None:
        row = tile * BLOCK_T
        num_tile_rows = num_rows - row
    else:
        segment, row, num_tile_rows = tile_record(tiles_ptr, first_tile + tile)

    # Where a tile starts takes 64 bits. Places inside it do not, which saves registers.
    first_row, first_col = row.to(tl.int64), col.to(tl.int64)
    rows, cols, ks = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    is_row = (rows < num_tile_rows)[:, None]
    is_col = (col + cols < width_n)[None, :]
    x_ptr += first_row * stride_xt
    x_places = rows[:, None] * stride_xt + ks[None, :]
    if IS_FORWARD:
        weight_ptr += first_col * width_k
        weight_places = cols[None, :] * width_k + ks[:, None]
    else:
        weight_ptr += first_col
        weight_places = cols[None, :] + ks[:, None] * width_n
    acc = tl.zeros((BLOCK_T, BLOCK_N), tl.float32)
    for k in range(0, width_k, BLOCK_K):
        is_x, is_weight = is_row, is_col
        if not IS_EVEN_K:
            is_x = is_row & (k + ks < width_k)[None, :]
            is_weight = is_col & (k + ks < width_k)[:, None]
        x = tl.load(x_ptr + x_places, mask=is_x, other=0.0)
        if IS_EVEN_K and IS_EVEN_N:
            weight = tl.load(weight_ptr + weight_places)
        else:
            weight = tl.load(weight_ptr + weight_places, mask=is_weight, other=0.0)
        acc = tl.dot(x, weight, acc, input_precision="ieee")
        x_ptr += BLOCK_K
        if IS_FORWARD:
            weight_ptr += BLOCK_K
        else:
            weight_ptr += width_n.to(tl.int64) * BLOCK_K

    if BUCKET > 0:
        start, rank, mask = segment_adapter(segments_ptr, segment)
        segment_row, _, s_start = segment_rows(segments_ptr, segment)
        s_ptr += s_start + (first_row - segment_row) * BUCKET
        # One loop whose length the launch decides: unrolled it takes more registers.
        STEPS: tl.constexpr = BUCKET // BLOCK_R
        for step in tl.range(num_summed * STEPS, num_stages=1):
            index = step // STEPS
            ranks = (step % STEPS) * BLOCK_R + tl.arange(0, BLOCK_R)
            place = site_place(table_ptr, mask, site + index, half, num_sites)
            # Where the site is not targeted, neither s nor rank rows are there to be read.
            is_s = rows < tl.where(place < 0, 0, num_tile_rows)
            is_rank = (ranks < tl.where(place < 0, 0, rank))[:, None]
            s_places = rows[:, None] * BUCKET + ranks[None, :]
            s = tl.load(
                s_ptr + index.to(tl.int64) * s_units * 16 + s_places,
                mask=is_s[:, None],
                other=0.0,
            )
            block_ptr = adapters_ptr + block_place(start, rank, place, granule_units) + first_col
            w = tl.load(
                block_ptr + (ranks[:, None] * pitch + cols[None, :]),
                mask=is_rank if IS_EVEN_N else is_rank & is_col,
                other=0.0,
            )
            acc = tl.dot(s, w, acc, input_precision="ieee")

    # In quarters, which takes fewer registers.
    QUARTER: tl.constexpr = BLOCK_N // 4
    left, right = _in_two(acc, BLOCK_T, BLOCK_N)
    quarters = _in_two(left, BLOCK_T, BLOCK_N // 2) + _in_two(right, BLOCK_T, BLOCK_N // 2)
    y_ptr += first_row * stride_yt + first_col
    for index in tl.static_range(4):
        part_cols = index * QUARTER + tl.arange(0, QUARTER)
        is_part_col = col + part_cols < width_n
        y = quarters[index]
        if bias_ptr is not None:
            bias = tl.load(bias_ptr + first_col + part_cols, mask=is_part_col, other=0.0)
            y += bias.to(tl.float32)[None, :]
        y_ptrs = y_ptr + (rows[:, None] * stride_yt + part_cols[None, :])
        is_y = is_row if IS_EVEN_N else is_row & is_part_col[None, :]
        if ACCUMULATE:
            y += tl.load(y_ptrs, mask=is_y, other=0.0).to(tl.float32)
        tl.store(y_ptrs, y.to(y_ptr.dtype.element_ty), mask=is_y)


@triton.jit
def _in_two(x, ROWS: tl.constexpr, COLS: tl.constexpr):
    """The left and the right half of the columns."""
    return x.reshape(ROWS, 2, COLS // 2).permute(0, 2, 1).split()


def blocks_of(dtype: torch.dtype) -> Blocks:
    """How a dtype's products are cut. Raises UnknownVariant."""
    type_name(dtype)
    return BLOCKS[dtype]


def is_even(
    dtype: torch.dtype, width_k: int, width_n: int, *, is_narrow: bool = False
) -> tuple[bool, bool]:
    """Whether blocks cut K and N without a rest."""
    blocks = blocks_of(dtype)
    return width_k % blocks.block_k == 0, width_n % blocks.width(is_narrow) == 0


@lru_cache(maxsize=512)
def gemm_variant(
    dtype: torch.dtype,
    height: int,
    *,
    is_forward: bool,
    is_even: tuple[bool, bool],
    has_bias: bool = False,
    accumulate: bool = False,
    bucket: int | None = None,
    is_narrow: bool = False,
) -> Variant:
    """The form for tiles of `height` rows.

    Args:
        is_even: as the function of that name says.
        is_narrow: for few rows, without a plan.
        bucket: of the adapters inside, 0 for tiles without; None for rows without a plan.

    Raises:
        UnknownVariant: no such form.
    """
    blocks, element = blocks_of(dtype), type_name(dtype)
    if height not in blocks.heights:
        raise UnknownVariant(f"no {element} for tiles of {height} rows, only {blocks.heights}")
    if bucket is not None and bucket not in BUCKETS:
        raise UnknownVariant(f"no product for rank bucket {bucket}, only {BUCKETS}")
    absent = (() if has_bias else ("bias_ptr",)) + (() if bucket else _ADAPTERS)
    if bucket is None:
        absent += _TABLES
    elements = dict.fromkeys(
        ("x_ptr", "weight_ptr", "bias_ptr", "y_ptr", *_ADAPTERS), f"*{element}"
    )
    integers = {**dict.fromkeys((*_TABLES, "table_ptr"), "*i32"), **dict.fromkeys(_COUNTS, "i32")}
    types = {**elements, **integers, **dict.fromkeys(_WIDTHS, "i32")}
    return Variant(
        name=f"{'linear' if is_forward else 'input_gradient'} {element} {height} rows"
        + ("" if bucket is None else f" bucket {bucket}")
        + " bias" * has_bias
        + " accumulate" * accumulate
        + " narrow" * is_narrow
        + " odd k" * (not is_even[0])
        + " odd n" * (not is_even[1]),
        kernel=_gemm_kernel,
        types={name: kind for name, kind in types.items() if name not in absent},
        constants={
            **dict.fromkeys(absent),
            "BUCKET": bucket or 0,
            "BUCKET_INDEX": BUCKETS.index(bucket or 0),
            "IS_FORWARD": is_forward,
            "ACCUMULATE": accumulate,
            "IS_EVEN_K": is_even[0],
            "IS_EVEN_N": is_even[1],
            "BLOCK_T": height,
            "BLOCK_N": blocks.width(is_narrow),
            "BLOCK_K": blocks.block_k,
            "BLOCK_R": min(bucket or MAX_RANK_BLOCK, MAX_RANK_BLOCK),
            "GROUP": blocks.group,
        },
        num_warps=height // ROWS_PER_WARP,
        num_stages=blocks.narrow_stages if is_narrow else blocks.num_stages,
        has_dot=dtype != torch.float32,
        multiples_of_16=_WIDTHS,
        max_narrow_loads=64 if has_bias else 24,
    )


def all_variants(shape: ModelShape) -> Iterator[Variant]:
    """Every variant that a model can launch; many models share all of theirs."""
    found: dict[str, Variant] = {}
    for dtype, blocks in BLOCKS.items():
        for inputs, outputs in shape.groups:
            for width in outputs:
                for variant in _variants_of(dtype, blocks, inputs, width):
                    found.setdefault(variant.name, variant)
    yield from found.values()


def _variants_of(
    dtype: torch.dtype, blocks: Blocks, inputs: int, outputs: int
) -> Iterator[Variant]:
    forms: list[tuple[int, int | None, bool]] = [(blocks.heights[-1], None, False)]
    if blocks.few_rows:
        forms.append((blocks.heights[0], None, True))
    forms += [(*form, False) for form in product(blocks.heights, BUCKETS)]
    for height, bucket, is_narrow in forms:
        form = partial(gemm_variant, dtype, height, bucket=bucket, is_narrow=is_narrow)
        forward = is_even(dtype, inputs, outputs, is_narrow=is_narrow)
        backward = is_even(dtype, outputs, inputs, is_narrow=is_narrow)
        for has_bias, accumulate in product((False, True), (False, bucket is None)):
            yield form(is_forward=True, is_even=forward, has_bias=has_bias, accumulate=accumulate)
        for accumulate in (False, True):
            yield form(is_forward=False, is_even=backward, accumulate=accumulate)
