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

from .adapters import Adapters, three, width_arguments, width_unit
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
from .shrink import TILE_ROWS, check_tiles, sum_planes, tile_forms
from .tiles import BUCKETS
from .variants import Variant, type_name

# Columns of a program, and rank rows of a product; those of float32 are unrolled.
BLOCKS = {torch.bfloat16: (128, 64), torch.float32: (32, 16)}
INTEGERS = [
    "site",
    "half",
    "num_sites",
    "s_units",
    "plane_units",
    "num_planes",
    "granule_units",
    "width_units",
    "pitch_units",
]
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
            bucket,
            plan.tile_rows,
            ys[0].dtype,
            unit=width_unit(width),
            is_sum=num_summed > 1 and bucket > 0,
            accumulate=accumulate,
            is_split=is_split and bucket > 0,
        )
        num_columns = -(-width // form.constants["BLOCK_O"])
        form.launch(
            (num_columns * len(ys), plan.num_tiles(bucket)),
            **three("y", ys),
            num_summed=num_summed,
            **arguments(s, adapters, site, half),
            **width_arguments(width),
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
    width,
    pitch,
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
        # Asked for first: they come from further away than s.
        is_weight = (ranks < rank)[:, None] & (cols < width)[None, :]
        rows = ranks.to(tl.int64)[:, None] * pitch
        w = tl.load(weights_ptr + rows + cols[None, :], mask=is_weight, other=0.0)
        s_places = places[:, None] + ranks[None, :]
        if IS_SPLIT:
            total = sum_planes(s_ptr, s_places, is_row[:, None], plane_size, num_planes)
            s = (total * scale).to(weights_ptr.dtype.element_ty)
        else:
            s = tl.load(s_ptr + s_places, mask=is_row[:, None], other=0.0)
        acc = tl.dot(tl.trans(w), tl.trans(s), acc, input_precision="ieee")
    return acc


@triton.jit(do_not_specialize=[*INTEGERS, "num_summed"])
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
    width_units,
    pitch_units,
    num_summed,
    UNIT: tl.constexpr,
    IS_SUM: tl.constexpr,
    BUCKET: tl.constexpr,
    BUCKET_INDEX: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_R: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    IS_SPLIT: tl.constexpr,
):
    """y[t] (+)= sum over num_summed sites, in order, of w^T s[t].

    A program takes one tile, BLOCK_O columns and one output; the first site of output i is
    `site + i`. Without ACCUMULATE rows that no adapter applies to become zero, else they stay.
    """
    first_tile, num_tiles = bucket_tiles(header_ptr, BUCKET_INDEX)
    if tl.program_id(1) >= num_tiles:
        return
    segment, row, rows = tile_record(tiles_ptr, first_tile + tl.program_id(1))
    start, rank, mask = segment_adapter(segments_ptr, segment)
    segment_row, _, s_start = segment_rows(segments_ptr, segment)
    width = width_units * UNIT
    output = tl.program_id(0) // tl.cdiv(width, BLOCK_O)
    cols = tl.program_id(0) % tl.cdiv(width, BLOCK_O) * BLOCK_O + tl.arange(0, BLOCK_O)
    steps = tl.arange(0, BLOCK_T)
    is_row = steps < rows
    scale = tl.load(scales_ptr + segment)
    acc = tl.zeros([BLOCK_O, BLOCK_T], tl.float32)
    num_applied = 0
    if BUCKET > 0:
        for index in range(num_summed if IS_SUM else 1):
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
                width,
                pitch_units * 16,
                BUCKET,
                BLOCK_O,
                BLOCK_R,
                IS_SPLIT,
            )
    y_ptr = pick(output, y0_ptr, y1_ptr, y2_ptr)
    y_places = y_ptr + (row + steps).to(tl.int64)[:, None] * width + cols[None, :]
    if ACCUMULATE:
        is_row = steps < tl.where(num_applied > 0, rows, 0)
    is_in = is_row[:, None] & (cols < width)[None, :]
    y = tl.trans(acc)
    if ACCUMULATE:
        y += tl.load(y_places, mask=is_in, other=0.0).to(tl.float32)
    tl.store(y_places, y.to(y0_ptr.dtype.element_ty), mask=is_in)


def num_warps(tile_rows: int, dtype: torch.dtype) -> int:
    """Warps of a program here.

    64 rows, bucket 64: 72 registers on sm_90, 80 on sm_80. With 4 warps 106 and 160, and 255 where
    sites are summed. Tiles of 16 rows need a group of 4 for the tensor cores.
    """
    if tile_rows >= 64:
        return 8
    return 4 if dtype == torch.bfloat16 else 2


def max_registers(tile_rows: int, dtype: torch.dtype, *, is_split: bool) -> int:
    """See `Variant`: forms that are not stated this have spilled up to eight registers."""
    return 255 if is_split or tile_rows != 64 or dtype == torch.float32 else 0


@lru_cache(maxsize=256)
def expand_variant(
    bucket: int,
    tile_rows: int,
    dtype: torch.dtype,
    *,
    unit: int = 16,
    is_sum: bool = False,
    accumulate: bool,
    is_split: bool = False,
) -> Variant:
    """The form for adapters of a bucket; bucket 0 writes zeros."""
    check_tiles(bucket, tile_rows, dtype)
    element = type_name(dtype)
    block_o, block_r = BLOCKS[dtype]
    return Variant(
        name=f"{element} bucket {bucket} rows {tile_rows}"
        + f" unit {unit}" * (unit != 16)
        + " sum" * is_sum
        + " add" * accumulate
        + " split" * is_split,
        kernel=_expand_kernel,
        types={
            "s_ptr": "*fp32" if is_split else f"*{element}",
            "weights_ptr": f"*{element}",
            **{f"y{index}_ptr": f"*{element}" for index in range(3)},
            **TABLES,
            **dict.fromkeys([*INTEGERS, "num_summed"], "i32"),
        },
        constants={
            "UNIT": unit,
            "IS_SUM": is_sum,
            "BUCKET": bucket,
            "BUCKET_INDEX": BUCKETS.index(bucket),
            "BLOCK_T": tile_rows,
            "BLOCK_O": block_o,
            "BLOCK_R": min(bucket, block_r),
            "ACCUMULATE": accumulate,
            "IS_SPLIT": is_split,
        },
        num_warps=num_warps(tile_rows, dtype),
        num_stages=2 if dtype == torch.bfloat16 else 1,
        has_dot=bucket > 0 and dtype != torch.float32,
        max_narrow_loads=24,
        max_registers=max_registers(tile_rows, dtype, is_split=is_split),
    )


def all_variants(shape: ModelShape) -> Iterator[Variant]:
    """Every variant that a model can launch, whatever its shape."""
    for dtype, heights in TILE_ROWS.items():
        for tile_rows in heights:
            yield expand_variant(0, tile_rows, dtype, accumulate=False)
    for (bucket, tile_rows, dtype), accumulate in product(tile_forms(), (False, True)):
        form = partial(expand_variant, bucket, tile_rows, dtype, accumulate=accumulate)
        yield from (form(), form(is_sum=True), form(is_split=True))
