"""The expand kernels: projections times the rank rows of their segment's adapter.

Forward s times the Bt rows of each site; backward ds times the A rows, summed over the sites of a
group. The product is computed transposed, as Bt^T s^T: tiles of 16 rows then fill the tensor cores'
64 lanes with columns, every tile height uses the same instruction, and what may have been cast in
registers is the right operand, which always goes through shared memory.
"""

from collections.abc import Iterator
from functools import lru_cache, partial
from itertools import product
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..layout import padded
from .adapters import Adapters, three
from .records import (
    block_place,
    bucket_tiles,
    pick,
    segment_adapter,
    segment_rows,
    site_place,
    tile_record,
)
from .shapes import ModelShape
from .shrink import DTYPES, TILE_ROWS, check_tiles, slab_of, sum_planes
from .tiles import BUCKETS
from .variants import Variant, type_name

# Columns of a program, and rank rows of a product; those of float32 are unrolled.
BLOCKS = {torch.bfloat16: (128, 64), torch.float32: (64, 16)}
INTEGERS = ["site", "half", "num_sites", "s_units", "plane_units", "num_planes", "granule_units"]
TABLES = {
    "table_ptr": "*i32",
    "header_ptr": "*i32",
    "tiles_ptr": "*i32",
    "segments_ptr": "*i32",
    "scales_ptr": "*fp32",
}


def launch(
    s: Tensor,
    adapters: Adapters,
    ys: list[Tensor],
    *,
    site: int,
    half: int,
    num_summed: int = 1,
    accumulate: bool,
) -> None:
    """Take projections, or their planes, to outputs of one width: one launch a bucket.

    The first site of output i is `site + i`, and its part of s is part i.
    """
    plan, width = adapters.plan, ys[0].shape[1]
    is_split = s.dim() == 2
    for bucket in plan.used_buckets if accumulate else (0, *plan.used_buckets):
        form = expand_variant(
            width,
            bucket,
            plan.tile_rows,
            ys[0].dtype,
            num_summed=num_summed,
            accumulate=accumulate,
            is_split=is_split and bucket > 0,
        )
        num_columns = -(-width // form.constants["BLOCK_O"])
        form.launch(
            (num_columns * len(ys), plan.num_tiles(bucket)),
            **three("y", ys),
            **arguments(s, adapters, site, half),
        )


def arguments(s: Tensor, adapters: Adapters, site: int, half: int) -> dict[str, Any]:
    """What every kernel here takes, whatever its outputs are."""
    is_split = s.dim() == 2
    return {
        "s_ptr": s,
        "weights_ptr": adapters.weights,
        "s_units": adapters.s_units,
        "plane_units": s.stride(0) // 16 if is_split else 0,
        "num_planes": len(s) if is_split else 1,
        "granule_units": adapters.granule_units,
        **adapters.tile_arguments(),
        **adapters.site_arguments(site, half),
    }


@triton.jit
def add_product(
    acc,
    s_ptr,
    weights_ptr,
    places,
    is_row,
    cols,
    rank,
    scale,
    plane_size,
    num_planes,
    WIDTH: tl.constexpr,
    PITCH: tl.constexpr,
    BUCKET: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_R: tl.constexpr,
    IS_SPLIT: tl.constexpr,
):
    """acc[o, t] + sum over r of weights[r, o] * s[t, r]; what lies beyond `rank` is not read.

    `places` are those of the rows' first columns in s, which is zero from the rank on: a mask there
    would split its vector loads.
    """
    for first in range(0, BUCKET, BLOCK_R):
        ranks = first + tl.arange(0, BLOCK_R)
        s_places = places[:, None] + ranks[None, :]
        if IS_SPLIT:
            total = sum_planes(s_ptr, s_places, is_row[:, None], plane_size, num_planes)
            s = (total * scale).to(weights_ptr.dtype.element_ty)
        else:
            s = tl.load(s_ptr + s_places, mask=is_row[:, None], other=0.0)
        is_weight = (ranks < rank)[:, None]
        if WIDTH % BLOCK_O != 0:
            is_weight &= (cols < WIDTH)[None, :]
        rows = ranks.to(tl.int64)[:, None] * PITCH
        w = tl.load(weights_ptr + rows + cols[None, :], mask=is_weight, other=0.0)
        acc = tl.dot(tl.trans(w), tl.trans(s), acc, input_precision="ieee")
    return acc


@triton.jit(do_not_specialize=INTEGERS)
def _expand_kernel(
    s_ptr,
    weights_ptr,
    y0_ptr,
    y1_ptr,
    y2_ptr,
    table_ptr,
    header_ptr,
    tiles_ptr,
    segments_ptr,
    scales_ptr,
    site,
    half,
    num_sites,
    s_units,
    plane_units,
    num_planes,
    granule_units,
    WIDTH: tl.constexpr,
    PITCH: tl.constexpr,
    NUM_SUMMED: tl.constexpr,
    BUCKET: tl.constexpr,
    BUCKET_INDEX: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_R: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    IS_SPLIT: tl.constexpr,
):
    """y[t] (+)= sum over NUM_SUMMED sites, in order, of w^T s[t].

    A program takes one tile, BLOCK_O columns and one output; the first site of output i is
    `site + i`. Without ACCUMULATE rows that no adapter applies to become zero, else they stay.
    """
    first_tile, num_tiles = bucket_tiles(header_ptr, BUCKET_INDEX)
    if tl.program_id(1) >= num_tiles:
        return
    segment, row, rows = tile_record(tiles_ptr, first_tile + tl.program_id(1))
    start, rank, mask = segment_adapter(segments_ptr, segment)
    segment_row, _, s_start = segment_rows(segments_ptr, segment)
    output = tl.program_id(0) // tl.cdiv(WIDTH, BLOCK_O)
    cols = tl.program_id(0) % tl.cdiv(WIDTH, BLOCK_O) * BLOCK_O + tl.arange(0, BLOCK_O)
    steps = tl.arange(0, BLOCK_T)
    is_row = steps < rows
    scale = tl.load(scales_ptr + segment)
    acc = tl.zeros([BLOCK_O, BLOCK_T], tl.float32)
    num_applied = 0
    if BUCKET > 0:
        for index in range(NUM_SUMMED):
            local = output + index
            place = site_place(table_ptr, mask, site + local, half, num_sites)
            num_applied += (place >= 0).to(tl.int32)
            s_place = local.to(tl.int64) * s_units * 16 + s_start
            acc = add_product(
                acc,
                s_ptr,
                weights_ptr + block_place(start, rank, place, granule_units),
                s_place + (row - segment_row + steps).to(tl.int64) * BUCKET,
                steps < tl.where(place < 0, 0, rows),
                cols,
                tl.where(place < 0, 0, rank),
                scale,
                plane_units.to(tl.int64) * 16,
                num_planes,
                WIDTH,
                PITCH,
                BUCKET,
                BLOCK_O,
                BLOCK_R,
                IS_SPLIT,
            )
    y_ptr = pick(output, y0_ptr, y1_ptr, y2_ptr)
    y_places = y_ptr + (row + steps).to(tl.int64)[:, None] * WIDTH + cols[None, :]
    if ACCUMULATE:
        is_row = steps < tl.where(num_applied > 0, rows, 0)
    is_in = is_row[:, None]
    if WIDTH % BLOCK_O != 0:
        is_in &= (cols < WIDTH)[None, :]
    y = tl.trans(acc)
    if ACCUMULATE:
        y += tl.load(y_places, mask=is_in, other=0.0).to(tl.float32)
    tl.store(y_places, y.to(y0_ptr.dtype.element_ty), mask=is_in)


@lru_cache(maxsize=512)
def expand_variant(
    width: int,
    bucket: int,
    tile_rows: int,
    dtype: torch.dtype,
    *,
    num_summed: int = 1,
    accumulate: bool,
    is_split: bool = False,
) -> Variant:
    """The form for outputs of `width` elements; bucket 0 writes zeros."""
    check_tiles(bucket, tile_rows)
    element = type_name(dtype)
    block_o, block_r = BLOCKS[dtype]
    return Variant(
        name=f"{element} width {width} bucket {bucket} rows {tile_rows} summed {num_summed}"
        + " add" * accumulate
        + " split" * is_split,
        kernel=_expand_kernel,
        types={
            "s_ptr": "*fp32" if is_split else f"*{element}",
            "weights_ptr": f"*{element}",
            **{f"y{index}_ptr": f"*{element}" for index in range(3)},
            **TABLES,
            **dict.fromkeys(INTEGERS, "i32"),
        },
        constants={
            "WIDTH": width,
            "PITCH": padded(width),
            "NUM_SUMMED": num_summed,
            "BUCKET": bucket,
            "BUCKET_INDEX": BUCKETS.index(bucket),
            "BLOCK_T": tile_rows,
            "BLOCK_O": block_o,
            "BLOCK_R": min(bucket, block_r),
            "ACCUMULATE": accumulate,
            "IS_SPLIT": is_split,
        },
        num_warps=8 if tile_rows >= 64 else 4,
        num_stages=2,
        has_dot=bucket > 0 and dtype != torch.float32,
        max_narrow_loads=20,
    )


def all_variants(shape: ModelShape) -> Iterator[Variant]:
    """Every variant that a model can launch."""
    for inputs, outputs in shape.groups:
        has_slabs = slab_of(inputs)[1] > 1
        for tile_rows, dtype, accumulate in product(TILE_ROWS, DTYPES, (False, True)):
            for bucket in BUCKETS[accumulate:]:
                form = partial(expand_variant, accumulate=accumulate)
                yield form(inputs, bucket, tile_rows, dtype, num_summed=len(outputs))
                for width in sorted(set(outputs)):
                    yield form(width, bucket, tile_rows, dtype)
                    if has_slabs and bucket:
                        yield form(width, bucket, tile_rows, dtype, is_split=True)
