"""Weight gradients in two steps, for batches where few entries have most rows.

A program sums one chunk into a plane; then another kernel adds the planes of each entry in order.
Same bits as one program for all chunks of an entry, `wgrad.py`.
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
import triton
import triton.language as tl

from .adapters import FULL_GRID
from .records import (
    block_place,
    bucket_entries,
    pick,
    segment_adapter,
    site_place,
    tile_record,
)
from .shapes import ModelShape
from .shrink import PLANES_AHEAD, check_bucket
from .tiles import BUCKETS, CHUNK_ROWS, ENTRY_COUNT, ENTRY_FIRST, TILE_ROWS, TilePlan
from .variants import TYPE_NAMES, Variant
from .wgrad_chunks import (
    INTEGERS,
    TABLES,
    chunk_sum,
    entry_block,
    entry_chunks,
    sum_variant,
)

ADD_BLOCK = 1024  # elements of one program that adds planes
MAX_PLANE_BYTES = 64 << 20  # of one launch; beyond it programs add all chunks of an entry
_ADD_INTEGERS = ["site", "half", "num_sites", "granule_units", "pitch_units"]


@lru_cache(maxsize=64)
def plane_count(plan: TilePlan, bucket: int, num_blocks: int, plane_bytes: int) -> int:
    """Chunks of a bucket if they are to have programs of their own, else 0.

    They are where the rows of the largest entry, which `num_blocks` programs would sum one after
    the other, are twice those that a program of a full device has on average.
    """
    index = BUCKETS.index(bucket)
    first, count = plan.header[index, 2:].tolist()
    entries = plan.entries[first : first + count]
    num_chunks = int(entries[:, ENTRY_COUNT].sum())
    if not num_chunks or num_chunks * plane_bytes > MAX_PLANE_BYTES:
        return 0
    start = int(entries[0, ENTRY_FIRST])
    rows = plan.chunks[start : start + num_chunks, TILE_ROWS].astype(np.int64)
    largest = int(np.add.reduceat(rows, entries[:, ENTRY_FIRST] - start).max())
    share = max(int(CHUNK_ROWS[index]), int(rows.sum()) * num_blocks // FULL_GRID)
    return num_chunks if largest >= 2 * share else 0


@triton.jit(do_not_specialize=INTEGERS)
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
    chunks_ptr,
    site,
    half,
    num_sites,
    s_units,
    width_units,
    pitch_units,
    UNIT: tl.constexpr,
    BUCKET: tl.constexpr,
    BUCKET_INDEX: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Sum one chunk, for BLOCK_R rank rows and BLOCK_D columns of one site, into its plane.

    Planes lie by chunk, then site.
    """
    first_entry, _ = bucket_entries(header_ptr, BUCKET_INDEX)
    chunk = entry_chunks(entries_ptr, first_entry)[0] + tl.program_id(1)
    _, rank, mask = segment_adapter(segments_ptr, tile_record(chunks_ptr, chunk)[0])
    pitch = pitch_units * 16
    num_parts = tl.num_programs(0) // tl.cdiv(pitch, BLOCK_D)
    block, part = tl.program_id(0) // num_parts, tl.program_id(0) % num_parts
    local = part // (BUCKET // BLOCK_R)
    if site_place(table_ptr, mask, site + local, half, num_sites) < 0:
        return
    cols = block * BLOCK_D + tl.arange(0, BLOCK_D)
    ranks = part % (BUCKET // BLOCK_R) * BLOCK_R + tl.arange(0, BLOCK_R)
    acc = chunk_sum(
        pick(local, u0_ptr, u1_ptr, u2_ptr),
        v_ptr + local.to(tl.int64) * s_units * 16,
        segments_ptr,
        chunks_ptr,
        chunk,
        cols,
        ranks,
        width_units * UNIT,
        BUCKET,
        BLOCK_T,
        BLOCK_D,
        BLOCK_R,
    )
    num_local = num_parts // (BUCKET // BLOCK_R)
    plane = tl.program_id(1).to(tl.int64) * num_local + local
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
    chunks_ptr,
    site,
    half,
    num_sites,
    granule_units,
    pitch_units,
    BUCKET: tl.constexpr,
    BUCKET_INDEX: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add the planes of one entry, in order, to BLOCK elements of one site's rank rows."""
    first_entry, _ = bucket_entries(header_ptr, BUCKET_INDEX)
    first_chunk = entry_chunks(entries_ptr, first_entry)[0]
    entry = first_entry + tl.program_id(1)
    first, count = entry_chunks(entries_ptr, entry)
    _, rank, mask = segment_adapter(segments_ptr, tile_record(chunks_ptr, first)[0])
    local, pitch = tl.program_id(2), pitch_units * 16
    place = site_place(table_ptr, mask, site + local, half, num_sites)
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_in = offsets < rank * pitch
    if place < 0:
        return
    block_start, is_fresh = entry_block(entries_ptr, entry)
    gradients_ptr += block_place(block_start, rank, place, granule_units)
    old_rank = tl.where(is_fresh == 0, rank, 0)
    total = tl.load(gradients_ptr + offsets, mask=offsets < old_rank * pitch, other=0.0)
    begin = first - first_chunk
    for chunk in tl.range(begin, begin + count, num_stages=PLANES_AHEAD):
        plane = (chunk * tl.num_programs(2) + local).to(tl.int64) * (BUCKET * pitch)
        total += tl.load(planes_ptr + plane + offsets, mask=is_in, other=0.0)
    tl.store(gradients_ptr + offsets, total, mask=is_in)


@lru_cache(maxsize=32)
def plane_variant(bucket: int, dtype: torch.dtype, unit: int = 16) -> Variant:
    """The form in which every chunk has a program of its own."""
    return sum_variant(_plane_kernel, bucket, dtype, unit, "planes_ptr")


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
            **TABLES,
            **dict.fromkeys(_ADD_INTEGERS, "i32"),
        },
        constants={
            "BUCKET": bucket,
            "BUCKET_INDEX": BUCKETS.index(bucket),
            "BLOCK": ADD_BLOCK,
        },
        max_narrow_loads=24,
    )


def all_variants(shape: ModelShape) -> Iterator[Variant]:
    """Every variant that a model can launch, whatever its shape."""
    for bucket in BUCKETS[1:]:
        yield add_planes_variant(bucket)
        for dtype in TYPE_NAMES:
            yield plane_variant(bucket, dtype)
