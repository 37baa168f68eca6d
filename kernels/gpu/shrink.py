"""The shrink kernel: rows times the rank rows of their segment's adapter.

Forward it reads x and the A rows of a site; backward dy and its Bt rows.
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor

from .adapters import FULL_GRID, Adapters, three, width_arguments, width_unit
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
from .tiles import BUCKETS
from .variants import UnknownVariant, Variant, type_name

TILE_ROWS = {torch.bfloat16: (16, 64, 128), torch.float32: (16, 64)}
MAX_RANK_BLOCK = 128  # rank rows of one program: two accumulators of 256 do not fit in registers
SLAB = 1024  # columns; the least that is summed apart
SLAB_UNIT = 128  # columns; a multiple of every program's step
MAX_SLABS = 8
WIDE = 65536  # columns, a vocabulary: more slabs, since its batches have few tiles
MAX_WIDE_SLABS = 32
# Planes that a program has asked for while it adds them up; left alone it waits for each or two.
PLANES_AHEAD = tl.constexpr(4)
_SLAB_UNIT = tl.constexpr(SLAB_UNIT)
_INTEGERS = [
    "site",
    "half",
    "num_sites",
    "s_units",
    "granule_units",
    "width_units",
    "pitch_units",
    "slab_units",
    "num_slabs",
]


def launch(
    xs: list[Tensor],
    s: Tensor,
    adapters: Adapters,
    site: int,
    half: int,
    *,
    is_split: bool = False,
) -> Tensor:
    """Project the rows of neighbouring sites of one width: one launch a bucket.

    Slabs get programs of their own where all in one would leave the device empty; then a second
    launch adds their planes, unless `is_split` leaves that to expand.

    Returns:
        s, or the planes.
    """
    plan, width = adapters.plan, xs[0].shape[1]
    slab, num_slabs = slab_of(width)
    num_tiles = len(plan.tiles) - plan.num_tiles(0)
    is_split &= num_slabs > 1
    has_planes = is_split or (num_slabs > 1 and 2 * num_tiles * len(xs) <= FULL_GRID)
    planes = s.new_empty(num_slabs, len(s), dtype=torch.float32) if has_planes else s
    common = {
        **adapters.tile_arguments(),
        **adapters.site_arguments(site, half),
        "s_units": adapters.s_units,
    }
    for bucket in plan.used_buckets:
        form = shrink_variant(bucket, plan.tile_rows, xs[0].dtype, width=width, is_split=has_planes)
        num_parts = len(xs) * (bucket // form.constants["BLOCK_R"])
        form.launch(
            (num_parts, plan.num_tiles(bucket), num_slabs if has_planes else 1),
            **three("x", xs),
            s_ptr=planes,
            weights_ptr=adapters.weights,
            granule_units=adapters.granule_units,
            slab_units=slab // SLAB_UNIT,
            num_slabs=num_slabs,
            **width_arguments(width),
            **common,
        )
        if has_planes and not is_split:
            form = combine_variant(bucket, plan.tile_rows, s.dtype)
            form.launch(
                (len(xs) * (bucket // form.constants["BLOCK_R"]), plan.num_tiles(bucket)),
                planes_ptr=planes,
                s_ptr=s,
                num_planes=num_slabs,
                **common,
            )
    return planes if is_split else s


def slab_of(width: int) -> tuple[int, int]:
    """Columns of a slab and number of slabs, a constant of the width: the tree of its sums."""
    limit = MAX_WIDE_SLABS if width >= WIDE else MAX_SLABS
    wanted = min(limit, -(-width // SLAB))
    slab = -(-width // (SLAB_UNIT * wanted)) * SLAB_UNIT
    return slab, -(-width // slab)


@triton.jit(do_not_specialize=_INTEGERS)
def _shrink_kernel(
    x0_ptr,
    x1_ptr,
    x2_ptr,
    s_ptr,
    weights_ptr,
    table_ptr,
    header_ptr,
    tiles_ptr,
    segments_ptr,
    scales_ptr,
    site,
    half,
    num_sites,
    s_units,
    granule_units,
    width_units,
    pitch_units,
    slab_units,
    num_slabs,
    UNIT: tl.constexpr,
    IS_EVEN: tl.constexpr,
    BUCKET: tl.constexpr,
    BUCKET_INDEX: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    IS_SPLIT: tl.constexpr,
):
    """s[t, r] = scale * sum over slabs, in order, of (sum over their columns k of x[t, k] w[r, k]).

    A program takes one tile, one site and BLOCK_R rank rows; split, one slab of them, which it
    writes to a plane of its own, in float32 and without the scale.
    """
    width, slab_width = width_units * UNIT, slab_units * _SLAB_UNIT
    part = tl.program_id(0)
    first_tile, num_tiles = bucket_tiles(header_ptr, BUCKET_INDEX)
    if tl.program_id(1) >= num_tiles:
        return
    segment, row, rows = tile_record(tiles_ptr, first_tile + tl.program_id(1))
    start, rank, mask = segment_adapter(segments_ptr, segment)
    local = part // (BUCKET // BLOCK_R)
    place = site_place(table_ptr, mask, site + local, half, num_sites)
    if place < 0:
        return
    x_ptr = pick(local, x0_ptr, x1_ptr, x2_ptr)
    ranks = part % (BUCKET // BLOCK_R) * BLOCK_R + tl.arange(0, BLOCK_R)
    steps = tl.arange(0, BLOCK_T)
    is_row, is_rank = steps < rows, ranks < rank
    cols = tl.arange(0, BLOCK_K)
    x_rows = x_ptr + (row + steps).to(tl.int64)[:, None] * width
    weights_ptr += block_place(start, rank, place, granule_units)
    w_rows = weights_ptr + ranks.to(tl.int64)[:, None] * (pitch_units * 16)

    first_slab, last_slab = 0, num_slabs
    if IS_SPLIT:
        first_slab = tl.program_id(2)
        last_slab = first_slab + 1
    total = tl.zeros([BLOCK_T, BLOCK_R], tl.float32)
    for slab in range(first_slab, last_slab):
        acc = tl.zeros([BLOCK_T, BLOCK_R], tl.float32)
        for col in range(slab * slab_width, min((slab + 1) * slab_width, width), BLOCK_K):
            if IS_EVEN:
                x = tl.load(x_rows + (col + cols)[None, :], mask=is_row[:, None], other=0.0)
                w = tl.load(w_rows + (col + cols)[None, :], mask=is_rank[:, None], other=0.0)
            else:
                is_col = (col + cols < width)[None, :]
                x = tl.load(
                    x_rows + (col + cols)[None, :], mask=is_row[:, None] & is_col, other=0.0
                )
                w = tl.load(
                    w_rows + (col + cols)[None, :], mask=is_rank[:, None] & is_col, other=0.0
                )
            acc = tl.dot(x, tl.trans(w), acc, input_precision="ieee")
        total += acc
    if not IS_SPLIT:
        total *= tl.load(scales_ptr + segment)
    # Selected, since 0 * Inf of the tenant's own rows would be NaN in columns that are to be zero.
    total = tl.where(is_rank[None, :], total, 0.0)
    segment_row, _, s_start = segment_rows(segments_ptr, segment)
    if IS_SPLIT:
        s_ptr += (
            tl.program_id(2).to(tl.int64)
            * s_units
            * 16
            * (tl.num_programs(0) // (BUCKET // BLOCK_R))
        )
    s_ptr += local.to(tl.int64) * s_units * 16 + s_start
    places = (row - segment_row + steps).to(tl.int64)[:, None] * BUCKET + ranks[None, :]
    tl.store(s_ptr + places, total.to(s_ptr.dtype.element_ty), mask=is_row[:, None])


@triton.jit(do_not_specialize=["site", "half", "num_sites", "s_units", "num_planes"])
def _combine_kernel(
    planes_ptr,
    s_ptr,
    table_ptr,
    header_ptr,
    tiles_ptr,
    segments_ptr,
    scales_ptr,
    site,
    half,
    num_sites,
    s_units,
    num_planes,
    BUCKET: tl.constexpr,
    BUCKET_INDEX: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """s = scale * sum of the planes, in order: what one program over all slabs gives.

    A program takes BLOCK_R columns of one tile of one site.
    """
    local = tl.program_id(0) // (BUCKET // BLOCK_R)
    num_local = tl.num_programs(0) // (BUCKET // BLOCK_R)
    first_tile, num_tiles = bucket_tiles(header_ptr, BUCKET_INDEX)
    if tl.program_id(1) >= num_tiles:
        return
    segment, row, rows = tile_record(tiles_ptr, first_tile + tl.program_id(1))
    _, _, mask = segment_adapter(segments_ptr, segment)
    if site_place(table_ptr, mask, site + local, half, num_sites) < 0:
        return
    segment_row, _, s_start = segment_rows(segments_ptr, segment)
    steps = tl.arange(0, BLOCK_T)
    is_row = (steps < rows)[:, None]
    places = (row - segment_row + steps).to(tl.int64)[:, None] * BUCKET
    places += (tl.program_id(0) % (BUCKET // BLOCK_R) * BLOCK_R + tl.arange(0, BLOCK_R))[None, :]
    places += local.to(tl.int64) * s_units * 16 + s_start
    plane_size = num_local.to(tl.int64) * s_units * 16
    total = sum_planes(planes_ptr, places, is_row, plane_size, num_planes)
    total *= tl.load(scales_ptr + segment)
    tl.store(s_ptr + places, total.to(s_ptr.dtype.element_ty), mask=is_row)


@triton.jit
def sum_planes(planes_ptr, places, is_in, plane_size, num_planes):
    """Sum of one tile over the planes that a split shrink wrote, in order."""
    total = tl.load(planes_ptr + places, mask=is_in, other=0.0)
    for plane in tl.range(1, num_planes, num_stages=PLANES_AHEAD):
        total += tl.load(planes_ptr + plane * plane_size + places, mask=is_in, other=0.0)
    return total


_TABLES = {
    "table_ptr": "*i32",
    "header_ptr": "*i32",
    "tiles_ptr": "*i32",
    "segments_ptr": "*i32",
    "scales_ptr": "*fp32",
}


def shrink_variant(
    bucket: int, tile_rows: int, dtype: torch.dtype, *, width: int, is_split: bool
) -> Variant:
    """The form for adapters of a bucket and rows of `width` elements."""
    block_k = 64 if dtype == torch.bfloat16 else 32
    is_even = width % block_k == 0
    return _shrink_variant(bucket, tile_rows, dtype, width_unit(width), is_even, is_split)


@lru_cache(maxsize=256)
def _shrink_variant(
    bucket: int, tile_rows: int, dtype: torch.dtype, unit: int, is_even: bool, is_split: bool
) -> Variant:
    check_tiles(bucket, tile_rows, dtype)
    element = type_name(dtype)
    is_half = dtype == torch.bfloat16  # else products are unrolled, and narrower
    block_r = min(bucket, MAX_RANK_BLOCK if is_half else 64)
    # With 4 warps the split form of 64 rows, bucket 64, spills on sm_100; so do 128 columns a step
    # on sm_80.
    return Variant(
        name=f"{element} bucket {bucket} rows {tile_rows}"
        + f" unit {unit}" * (unit != 16)
        + " masked" * (not is_even)
        + " split" * is_split,
        kernel=_shrink_kernel,
        types={
            **{f"x{index}_ptr": f"*{element}" for index in range(3)},
            "s_ptr": "*fp32" if is_split else f"*{element}",
            "weights_ptr": f"*{element}",
            **_TABLES,
            **dict.fromkeys(_INTEGERS, "i32"),
        },
        constants={
            "UNIT": unit,
            "IS_EVEN": is_even,
            "BUCKET": bucket,
            "BUCKET_INDEX": BUCKETS.index(bucket),
            "BLOCK_T": tile_rows,
            "BLOCK_R": block_r,
            "BLOCK_K": 64 if is_half else 32,
            "IS_SPLIT": is_split,
        },
        num_warps=8 if tile_rows * block_r >= 64 * 64 else 4,
        num_stages=4,
        has_dot=is_half,
        max_narrow_loads=16,
    )


@lru_cache(maxsize=64)
def combine_variant(bucket: int, tile_rows: int, dtype: torch.dtype) -> Variant:
    """The form that adds the planes of a bucket's tiles."""
    check_tiles(bucket, tile_rows, dtype)
    element = type_name(dtype)
    block_r = min(bucket, 64)
    integers = ("site", "half", "num_sites", "s_units", "num_planes")
    return Variant(
        name=f"{element} bucket {bucket} rows {tile_rows}",
        kernel=_combine_kernel,
        types={
            "planes_ptr": "*fp32",
            "s_ptr": f"*{element}",
            **_TABLES,
            **dict.fromkeys(integers, "i32"),
        },
        constants={
            "BUCKET": bucket,
            "BUCKET_INDEX": BUCKETS.index(bucket),
            "BLOCK_T": tile_rows,
            "BLOCK_R": block_r,
        },
        num_warps=min(8, max(1, tile_rows * block_r // 512)),
        max_narrow_loads=16,
    )


def check_bucket(bucket: int) -> None:
    """Refuse rank buckets that do not exist, with `UnknownVariant`."""
    if bucket not in BUCKETS:
        raise UnknownVariant(f"no kernel for rank bucket {bucket}, only {BUCKETS}")


def check_tiles(bucket: int, tile_rows: int, dtype: torch.dtype) -> None:
    """Refuse buckets and heights of tiles that do not exist, with `UnknownVariant`."""
    check_bucket(bucket)
    heights = TILE_ROWS.get(dtype, ())
    if tile_rows not in heights:
        raise UnknownVariant(f"no kernel for tiles of {tile_rows} rows of {dtype}, only {heights}")


def tile_forms() -> Iterator[tuple[int, int, torch.dtype]]:
    """Every rank bucket above 0, height of tiles and dtype."""
    for dtype, heights in TILE_ROWS.items():
        for bucket, tile_rows in product(BUCKETS[1:], heights):
            yield bucket, tile_rows, dtype


def all_variants(shape: ModelShape) -> Iterator[Variant]:
    """Every variant that a model can launch."""
    widths = {width for inputs, outputs in shape.groups for width in (inputs, *outputs)}
    for bucket, tile_rows, dtype in tile_forms():
        yield combine_variant(bucket, tile_rows, dtype)
        for width, is_split in product(sorted(widths), (False, True)):
            yield shrink_variant(bucket, tile_rows, dtype, width=width, is_split=is_split)
