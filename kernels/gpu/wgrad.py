"""Weight gradients: rank rows times activations, summed over the rows of a run.

    gradient[r, d] += sum over the rows t of the entry of v[t, r] * u[t, d]

For A rows u is x and v is ds; for Bt rows u is dy and v is s. `wgrad_chunks.py` tells the order of
the sum. Here one program adds all chunks of an entry; `wgrad_planes.py` has the other schedule.
"""

from collections.abc import Iterator
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..layout import padded
from .adapters import Adapters, three, width_unit
from .records import (
    block_place,
    bucket_entries,
    pick,
    segment_adapter,
    site_place,
    tile_record,
)
from .shapes import ModelShape
from .tiles import BUCKETS
from .variants import TYPE_NAMES, Variant
from .wgrad_chunks import (
    BLOCK_D,
    INTEGERS,
    chunk_sum,
    entry_block,
    entry_chunks,
    sum_variant,
)
from .wgrad_planes import ADD_BLOCK, add_planes_variant, plane_count, plane_variant


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
        plane_size = len(us) * bucket * pitch
        num_planes = plane_count(plan, bucket, num_blocks, plane_size * 4)
        if not num_planes:
            form.launch((num_blocks, num_entries), **sources, **target, **common)
            continue
        planes = v.new_empty(num_planes, plane_size, dtype=torch.float32)
        plane_variant(bucket, v.dtype, unit).launch(
            (num_blocks, num_planes), planes_ptr=planes, **sources, **common
        )
        add_planes_variant(bucket).launch(
            (-(-bucket * pitch // ADD_BLOCK), num_entries, len(us)),
            planes_ptr=planes,
            **target,
            **common,
        )


@triton.jit(do_not_specialize=[*INTEGERS, "granule_units"])
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
    chunks_ptr,
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
    entry = first_entry + tl.program_id(1)
    first, count = entry_chunks(entries_ptr, entry)
    _, rank, mask = segment_adapter(segments_ptr, tile_record(chunks_ptr, first)[0])
    pitch = pitch_units * 16
    num_parts = tl.num_programs(0) // tl.cdiv(pitch, BLOCK_D)
    block, part = tl.program_id(0) // num_parts, tl.program_id(0) % num_parts
    local = part // (BUCKET // BLOCK_R)
    place = site_place(table_ptr, mask, site + local, half, num_sites)
    if place < 0:
        return
    cols = block * BLOCK_D + tl.arange(0, BLOCK_D)
    ranks = part % (BUCKET // BLOCK_R) * BLOCK_R + tl.arange(0, BLOCK_R)
    block_start, is_fresh = entry_block(entries_ptr, entry)
    gradients_ptr += block_place(block_start, rank, place, granule_units)
    g_places = gradients_ptr + ranks.to(tl.int64)[:, None] * pitch + cols[None, :]
    is_in = (ranks < rank)[:, None] & (cols < pitch)[None, :]
    old_rank = tl.where(is_fresh == 0, rank, 0)
    is_old = is_in & (ranks < old_rank)[:, None]
    total = tl.trans(tl.load(g_places, mask=is_old, other=0.0))
    u_ptr = pick(local, u0_ptr, u1_ptr, u2_ptr)
    v_ptr += local.to(tl.int64) * s_units * 16
    for chunk in range(first, first + count):
        total += chunk_sum(
            u_ptr,
            v_ptr,
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
    tl.store(g_places, tl.trans(total), mask=is_in)


@lru_cache(maxsize=32)
def add_variant(bucket: int, dtype: torch.dtype, unit: int = 16) -> Variant:
    """The form in which one program adds all chunks of an entry."""
    return sum_variant(_add_kernel, bucket, dtype, unit, "gradients_ptr", "granule_units")


def all_variants(shape: ModelShape) -> Iterator[Variant]:
    """Every variant that a model can launch, whatever its shape."""
    for bucket in BUCKETS[1:]:
        for dtype in TYPE_NAMES:
            yield add_variant(bucket, dtype)
