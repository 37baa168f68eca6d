"""The weight gradient kernels: rank rows times activations, summed over the rows of a run.

    gradient[r, d] += sum over the rows t of the entry of v[t, r] * u[t, d]

For A rows u is x and v is ds; for Bt rows u is dy and v is s. A *chunk* is at most `chunk_rows` rows
of one unit, counted from the unit's first row. Chunks are summed from zero, and added to the block
one after the other in the entry's order, so that the bits of a gradient depend on the run's own
units alone. Who computes which chunk is free: one program all of an entry's, or one program each,
which writes a plane that another kernel adds.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from ..layout import padded
from . import tiles
from .adapters import FULL_GRID, Adapters, three, width_unit
from .records import (
    block_place,
    bucket_entries,
    pick,
    segment_adapter,
    segment_rows,
    site_place,
)
from .shapes import ModelShape
from .shrink import TILE_ROWS, check_bucket
from .tiles import BUCKETS, ENTRY_COUNT, ENTRY_FIRST, SEGMENT_ROWS, TilePlan
from .variants import Variant, type_name

MAX_RANK_BLOCK = 128  # rank rows of one program, as in `shrink.py`
BLOCK_D = 128
SUM_BLOCK = 1024  # elements of one program that adds planes
MAX_PLANE_BYTES = 64 << 20  # of one launch; beyond it programs add all chunks of an entry
_TABLES = dict.fromkeys(
    ("table_ptr", "header_ptr", "segments_ptr", "entries_ptr", "order_ptr"), "*i32"
)
_INTEGERS = ["site", "half", "num_sites", "s_units", "width_units", "pitch_units"]
_ADD_INTEGERS = ["site", "half", "num_sites", "num_chunks", "granule_units", "pitch_units"]
_ENTRY_WIDTH = tl.constexpr(tiles.ENTRY_WIDTH)
_ENTRY_FIRST = tl.constexpr(tiles.ENTRY_FIRST)
_ENTRY_COUNT = tl.constexpr(tiles.ENTRY_COUNT)
_ENTRY_GRADIENT = tl.constexpr(tiles.ENTRY_GRADIENT)
_ENTRY_IS_FRESH = tl.constexpr(tiles.ENTRY_IS_FRESH)


def launch(us: list[Tensor], v: Tensor, adapters: Adapters, site: int, half: int) -> None:
    """Add the gradients of neighbouring sites of one width to the blocks of the plan's entries.

    One launch a bucket; two where one program for each entry would leave the device empty.
    """
    plan, width = adapters.plan, us[0].shape[1]
    pitch, unit = padded(width), width_unit(width)
    if not len(plan.entries):
        return
    if adapters.gradients is None:
        raise ValueError("the plan has entries, but there are no gradients to add to")
    common = {
        **adapters.entry_arguments(),
        **adapters.site_arguments(site, half),
        "pitch_units": pitch // 16,
    }
    sources = {
        **three("u", us),
        "v_ptr": v,
        "s_units": adapters.s_units,
        "width_units": width // unit,
    }
    target = {"gradients_ptr": adapters.gradients, "granule_units": adapters.granule_units}
    for bucket in plan.used_buckets:
        form = add_variant(bucket, v.dtype, unit)
        num_blocks = len(us) * (bucket // form.constants["BLOCK_R"]) * -(-pitch // BLOCK_D)
        num_entries = plan.num_entries(bucket)
        grid = plane_grid(plan, bucket, num_blocks, len(us) * bucket * pitch * 4)
        if grid is None:
            form.launch((num_blocks, num_entries), **sources, **target, **common)
            continue
        num_planes, num_chunks = grid[0] * grid[1] * len(us), grid[1]
        planes = v.new_empty(num_planes * bucket * pitch, dtype=torch.float32)
        plane_variant(bucket, v.dtype, unit).launch(
            (num_blocks, *grid), planes_ptr=planes, num_chunks=num_chunks, **sources, **common
        )
        add_planes_variant(bucket).launch(
            (-(-bucket * pitch // SUM_BLOCK), num_entries, len(us)),
            planes_ptr=planes,
            num_chunks=num_chunks,
            **target,
            **common,
        )


@lru_cache(maxsize=64)
def plane_grid(
    plan: TilePlan, bucket: int, num_blocks: int, plane_bytes: int
) -> tuple[int, int] | None:
    """Units of a bucket and the most chunks of one, if chunks are to have programs of their own.

    They are where the rows of the largest entry, which `num_blocks` programs would sum one after
    the other, are twice those that a program of a full device has on average.
    """
    first, count = plan.header[BUCKETS.index(bucket), 2:].tolist()
    entries = plan.entries[first : first + count]
    if not count:
        return None
    start, chunk = int(entries[0, ENTRY_FIRST]), chunk_rows(bucket)
    num_units = int(entries[:, ENTRY_COUNT].sum())
    rows = plan.segments[plan.order[start : start + num_units], SEGMENT_ROWS].astype(np.int64)
    largest = int(np.add.reduceat(rows, entries[:, ENTRY_FIRST] - start).max())
    num_chunks = -(-int(rows.max()) // chunk)
    share = max(chunk, int(rows.sum()) * num_blocks // FULL_GRID)
    if largest < 2 * share or num_units * num_chunks * plane_bytes > MAX_PLANE_BYTES:
        return None
    return num_units, num_chunks


def chunk_rows(bucket: int) -> int:
    """Rows of a chunk: more where its plane is larger, so that planes stay below a quarter of u."""
    return 1024 if bucket <= 64 else 2048


@triton.jit
def _chunk_sum(
    u_ptr,
    v_ptr,
    begin,
    end,
    cols,
    ranks,
    width,
    BUCKET: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """sum over rows begin to end of u[t, cols] v[t, ranks], [BLOCK_D, BLOCK_R], from zero.

    Columns are the higher side: a rank bucket of 16 or 32 rows is none that tensor cores have.
    """
    acc = tl.zeros([BLOCK_D, BLOCK_R], tl.float32)
    for first in range(begin, end, BLOCK_T):
        steps = first + tl.arange(0, BLOCK_T)
        is_row = (steps < end)[:, None]
        is_u = is_row & (cols < width)[None, :]
        places = steps.to(tl.int64)[:, None]
        u = tl.load(u_ptr + places * width + cols[None, :], mask=is_u, other=0.0)
        v = tl.load(v_ptr + places * BUCKET + ranks[None, :], mask=is_row, other=0.0)
        acc = tl.dot(tl.trans(u), v, acc, input_precision="ieee")
    return acc


@triton.jit(do_not_specialize=[*_INTEGERS, "granule_units"])
def _add_kernel(
    u0_ptr,
    u1_ptr,
    u2_ptr,
    v_ptr,
    gradients_ptr,
    table_ptr,
    header_ptr,
    segments_ptr,
    entries_ptr,
    order_ptr,
    site,
    half,
    num_sites,
    s_units,
    granule_units,
    width_units,
    pitch_units,
    UNIT: tl.constexpr,
    BUCKET: tl.constexpr,
    BUCKET_INDEX: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Add all chunks of one entry to BLOCK_R rank rows, BLOCK_D columns, of one site.

    A fresh block starts from zero, and its padding becomes zero.
    """
    first_entry, num_entries = bucket_entries(header_ptr, BUCKET_INDEX)
    if tl.program_id(1) >= num_entries:
        return
    entry = entries_ptr + (first_entry + tl.program_id(1)) * _ENTRY_WIDTH
    first, count = tl.load(entry + _ENTRY_FIRST), tl.load(entry + _ENTRY_COUNT)
    _, rank, mask = segment_adapter(segments_ptr, tl.load(order_ptr + first))
    pitch = pitch_units * 16
    block = tl.program_id(0) % tl.cdiv(pitch, BLOCK_D)
    part = tl.program_id(0) // tl.cdiv(pitch, BLOCK_D)
    local = part // (BUCKET // BLOCK_R)
    place = site_place(table_ptr, mask, site + local, half, num_sites)
    if place < 0:
        return
    cols = block * BLOCK_D + tl.arange(0, BLOCK_D)
    ranks = part % (BUCKET // BLOCK_R) * BLOCK_R + tl.arange(0, BLOCK_R)
    gradients_ptr += block_place(tl.load(entry + _ENTRY_GRADIENT), rank, place, granule_units)
    g_places = gradients_ptr + ranks.to(tl.int64)[:, None] * pitch + cols[None, :]
    is_in = (ranks < rank)[:, None] & (cols < pitch)[None, :]
    old_rank = tl.where(tl.load(entry + _ENTRY_IS_FRESH) == 0, rank, 0)
    is_old = is_in & (ranks < old_rank)[:, None]
    total = tl.trans(tl.load(g_places, mask=is_old, other=0.0))
    u_ptr = pick(local, u0_ptr, u1_ptr, u2_ptr)
    v_ptr += local.to(tl.int64) * s_units * 16
    for unit in range(first, first + count):
        row, rows, s_start = segment_rows(segments_ptr, tl.load(order_ptr + unit))
        for chunk in range(0, rows, CHUNK):
            total += _chunk_sum(
                u_ptr + row.to(tl.int64) * (width_units * UNIT),
                v_ptr + s_start,
                chunk,
                min(chunk + CHUNK, rows),
                cols,
                ranks,
                width_units * UNIT,
                BUCKET,
                BLOCK_T,
                BLOCK_D,
                BLOCK_R,
            )
    tl.store(g_places, tl.trans(total), mask=is_in)


@triton.jit(do_not_specialize=[*_INTEGERS, "num_chunks"])
def _plane_kernel(
    u0_ptr,
    u1_ptr,
    u2_ptr,
    v_ptr,
    planes_ptr,
    table_ptr,
    header_ptr,
    segments_ptr,
    entries_ptr,
    order_ptr,
    site,
    half,
    num_sites,
    s_units,
    num_chunks,
    width_units,
    pitch_units,
    UNIT: tl.constexpr,
    BUCKET: tl.constexpr,
    BUCKET_INDEX: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Sum one chunk, for BLOCK_R rank rows and BLOCK_D columns of one site, into its plane.

    Planes lie by place in the bucket's order, then chunk of at most `num_chunks`, then site.
    """
    first_entry, _ = bucket_entries(header_ptr, BUCKET_INDEX)
    first = tl.load(entries_ptr + first_entry * _ENTRY_WIDTH + _ENTRY_FIRST)
    segment = tl.load(order_ptr + first + tl.program_id(1))
    row, rows, s_start = segment_rows(segments_ptr, segment)
    chunk = tl.program_id(2) * CHUNK
    if chunk >= rows:
        return
    _, rank, mask = segment_adapter(segments_ptr, segment)
    pitch = pitch_units * 16
    block = tl.program_id(0) % tl.cdiv(pitch, BLOCK_D)
    part = tl.program_id(0) // tl.cdiv(pitch, BLOCK_D)
    local = part // (BUCKET // BLOCK_R)
    if site_place(table_ptr, mask, site + local, half, num_sites) < 0:
        return
    cols = block * BLOCK_D + tl.arange(0, BLOCK_D)
    ranks = part % (BUCKET // BLOCK_R) * BLOCK_R + tl.arange(0, BLOCK_R)
    acc = _chunk_sum(
        pick(local, u0_ptr, u1_ptr, u2_ptr) + row.to(tl.int64) * (width_units * UNIT),
        v_ptr + local.to(tl.int64) * s_units * 16 + s_start,
        chunk,
        min(chunk + CHUNK, rows),
        cols,
        ranks,
        width_units * UNIT,
        BUCKET,
        BLOCK_T,
        BLOCK_D,
        BLOCK_R,
    )
    num_local = tl.num_programs(0) // tl.cdiv(pitch, BLOCK_D) // (BUCKET // BLOCK_R)
    plane = (tl.program_id(1) * num_chunks + tl.program_id(2)).to(tl.int64) * num_local + local
    is_in = (ranks < rank)[:, None] & (cols < pitch)[None, :]
    places = planes_ptr + (plane * BUCKET + ranks)[:, None] * pitch + cols[None, :]
    tl.store(places, tl.trans(acc), mask=is_in)


@triton.jit(do_not_specialize=_ADD_INTEGERS)
def _add_planes_kernel(
    planes_ptr,
    gradients_ptr,
    table_ptr,
    header_ptr,
    segments_ptr,
    entries_ptr,
    order_ptr,
    site,
    half,
    num_sites,
    num_chunks,
    granule_units,
    pitch_units,
    BUCKET: tl.constexpr,
    BUCKET_INDEX: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add the planes of one entry, in order, to BLOCK elements of one site's rank rows."""
    first_entry, _ = bucket_entries(header_ptr, BUCKET_INDEX)
    first_place = tl.load(entries_ptr + first_entry * _ENTRY_WIDTH + _ENTRY_FIRST)
    entry = entries_ptr + (first_entry + tl.program_id(1)) * _ENTRY_WIDTH
    first, count = tl.load(entry + _ENTRY_FIRST), tl.load(entry + _ENTRY_COUNT)
    _, rank, mask = segment_adapter(segments_ptr, tl.load(order_ptr + first))
    local, pitch = tl.program_id(2), pitch_units * 16
    place = site_place(table_ptr, mask, site + local, half, num_sites)
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_in = offsets < rank * pitch
    if place < 0:
        return
    gradients_ptr += block_place(tl.load(entry + _ENTRY_GRADIENT), rank, place, granule_units)
    old_rank = tl.where(tl.load(entry + _ENTRY_IS_FRESH) == 0, rank, 0)
    total = tl.load(gradients_ptr + offsets, mask=offsets < old_rank * pitch, other=0.0)
    for unit in range(first, first + count):
        rows = segment_rows(segments_ptr, tl.load(order_ptr + unit))[1]
        for chunk in range(tl.cdiv(rows, CHUNK)):
            index = (unit - first_place) * num_chunks + chunk
            plane = (index * tl.num_programs(2) + local).to(tl.int64) * (BUCKET * pitch)
            total += tl.load(planes_ptr + plane + offsets, mask=is_in, other=0.0)
    tl.store(gradients_ptr + offsets, total, mask=is_in)


@lru_cache(maxsize=32)
def add_variant(bucket: int, dtype: torch.dtype, unit: int = 16) -> Variant:
    """The form in which one program adds all chunks of an entry."""
    return _variant(_add_kernel, bucket, dtype, unit)


@lru_cache(maxsize=32)
def plane_variant(bucket: int, dtype: torch.dtype, unit: int = 16) -> Variant:
    """The form in which every chunk has a program of its own."""
    return _variant(_plane_kernel, bucket, dtype, unit)


def _variant(kernel: Any, bucket: int, dtype: torch.dtype, unit: int) -> Variant:
    check_bucket(bucket)
    element, is_plane = type_name(dtype), kernel is _plane_kernel
    is_half = dtype == torch.bfloat16  # else products are unrolled, and narrower
    integers = [*_INTEGERS, "num_chunks" if is_plane else "granule_units"]
    return Variant(
        name=f"{element} bucket {bucket}" + f" unit {unit}" * (unit != 16),
        kernel=kernel,
        types={
            **{f"u{index}_ptr": f"*{element}" for index in range(3)},
            "v_ptr": f"*{element}",
            "planes_ptr" if is_plane else "gradients_ptr": "*fp32",
            **_TABLES,
            **dict.fromkeys(integers, "i32"),
        },
        constants={
            "UNIT": unit,
            "BUCKET": bucket,
            "BUCKET_INDEX": BUCKETS.index(bucket),
            "CHUNK": chunk_rows(bucket),
            "BLOCK_T": 64 if is_half else 16,
            "BLOCK_D": BLOCK_D,
            "BLOCK_R": min(bucket, MAX_RANK_BLOCK if is_half else 64),
        },
        num_warps=4 if bucket <= 32 else 8,
        num_stages=3,
        has_dot=is_half,
        max_narrow_loads=20,
    )


@lru_cache(maxsize=8)
def add_planes_variant(bucket: int) -> Variant:
    """The form that adds planes."""
    check_bucket(bucket)
    return Variant(
        name=f"bucket {bucket}",
        kernel=_add_planes_kernel,
        types={
            "planes_ptr": "*fp32",
            "gradients_ptr": "*fp32",
            **_TABLES,
            **dict.fromkeys(_ADD_INTEGERS, "i32"),
        },
        constants={
            "BUCKET": bucket,
            "BUCKET_INDEX": BUCKETS.index(bucket),
            "CHUNK": chunk_rows(bucket),
            "BLOCK": SUM_BLOCK,
        },
        max_narrow_loads=24,
    )


def all_variants(shape: ModelShape) -> Iterator[Variant]:
    """Every variant that a model can launch, whatever its shape."""
    for bucket in BUCKETS[1:]:
        yield add_planes_variant(bucket)
        for dtype in TILE_ROWS:
            yield add_variant(bucket, dtype)
            yield plane_variant(bucket, dtype)
