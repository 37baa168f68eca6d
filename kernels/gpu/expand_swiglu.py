"""Expand of gate and up together with what follows them, SwiGLU: gate and up are read once."""

from collections.abc import Iterator
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from .adapters import BT, Adapters, width_arguments, width_unit
from .expand import (
    BLOCKS,
    INTEGERS,
    TABLES,
    add_product,
    arguments,
    max_registers,
    num_warps,
)
from .records import (
    block_place,
    bucket_tiles,
    segment_adapter,
    segment_rows,
    site_place,
    tile_record,
)
from .shapes import ModelShape
from .shrink import TILE_ROWS, check_tiles, tile_forms
from .swiglu import gated
from .tiles import BUCKETS
from .variants import Variant, type_name


def launch(
    s: Tensor,
    adapters: Adapters,
    site: int,
    gate: Tensor,
    up: Tensor,
    h: Tensor,
    *,
    keep: bool,
) -> None:
    """One launch for each bucket that has tiles, rows without adapter included."""
    plan, width = adapters.plan, gate.shape[1]
    for bucket in (0, *plan.used_buckets):
        form = swiglu_variant(
            bucket,
            plan.tile_rows,
            gate.dtype,
            unit=width_unit(width),
            keep=keep and bucket > 0,
            is_split=s.dim() == 2 and bucket > 0,
        )
        form.launch(
            (-(-width // form.constants["BLOCK_O"]), plan.num_tiles(bucket)),
            gate_ptr=gate,
            up_ptr=up,
            h_ptr=h,
            **arguments(s, adapters, site, BT),
            **width_arguments(width),
        )


@triton.jit(do_not_specialize=INTEGERS)
def _expand_swiglu_kernel(
    s_ptr,
    weights_ptr,
    gate_ptr,
    up_ptr,
    h_ptr,
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
    UNIT: tl.constexpr,
    BUCKET: tl.constexpr,
    BUCKET_INDEX: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_R: tl.constexpr,
    KEEP: tl.constexpr,
    IS_SPLIT: tl.constexpr,
):
    """gate[t] += Bt_0^T s_0[t]; up[t] += Bt_1^T s_1[t]; h[t] = silu(gate[t]) * up[t].

    A program takes one tile and BLOCK_O columns. Without KEEP gate and up stay as they were. They
    are rounded before h is computed from them, as those that are read from memory would be.
    """
    first_tile, num_tiles = bucket_tiles(header_ptr, BUCKET_INDEX)
    if tl.program_id(1) >= num_tiles:
        return
    segment, row, rows = tile_record(tiles_ptr, first_tile + tl.program_id(1))
    width = width_units * UNIT
    cols = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    steps = tl.arange(0, BLOCK_T)
    places = (row + steps).to(tl.int64)[:, None] * width + cols[None, :]
    is_in = (steps < rows)[:, None] & (cols < width)[None, :]
    gate = tl.load(gate_ptr + places, mask=is_in, other=0.0)
    up = tl.load(up_ptr + places, mask=is_in, other=0.0)
    if BUCKET > 0:
        start, rank, mask = segment_adapter(segments_ptr, segment)
        segment_row, _, s_start = segment_rows(segments_ptr, segment)
        s_places = s_start + (row - segment_row + steps).to(tl.int64) * BUCKET
        scale = tl.load(scales_ptr + segment)
        gate_place = site_place(table_ptr, mask, site, half, num_sites)
        up_place = site_place(table_ptr, mask, site + 1, half, num_sites)
        # Sites of a group are targeted together.
        own_rank = tl.where(gate_place < 0, 0, rank)
        is_own = steps < tl.where(gate_place < 0, 0, rows)
        plane_size = plane_units.to(tl.int64) * 16
        gate_acc = add_product(
            tl.zeros([BLOCK_O, BLOCK_T], tl.float32),
            s_ptr,
            weights_ptr + block_place(start, rank, gate_place, granule_units),
            s_places,
            is_own,
            cols,
            own_rank,
            scale,
            plane_size,
            num_planes,
            width,
            pitch_units * 16,
            BUCKET,
            BLOCK_O,
            BLOCK_R,
            IS_SPLIT,
        )
        up_acc = add_product(
            tl.zeros([BLOCK_O, BLOCK_T], tl.float32),
            s_ptr + s_units.to(tl.int64) * 16,
            weights_ptr + block_place(start, rank, up_place, granule_units),
            s_places,
            is_own,
            cols,
            own_rank,
            scale,
            plane_size,
            num_planes,
            width,
            pitch_units * 16,
            BUCKET,
            BLOCK_O,
            BLOCK_R,
            IS_SPLIT,
        )
        element = gate_ptr.dtype.element_ty
        gate = (tl.trans(gate_acc) + gate.to(tl.float32)).to(element)
        up = (tl.trans(up_acc) + up.to(tl.float32)).to(element)
        if KEEP:
            is_changed = is_in & is_own[:, None]
            tl.store(gate_ptr + places, gate, mask=is_changed)
            tl.store(up_ptr + places, up, mask=is_changed)
    h = gated(gate.to(tl.float32), up.to(tl.float32))
    tl.store(h_ptr + places, h.to(h_ptr.dtype.element_ty), mask=is_in)


@lru_cache(maxsize=128)
def swiglu_variant(
    bucket: int,
    tile_rows: int,
    dtype: torch.dtype,
    *,
    unit: int = 16,
    keep: bool = False,
    is_split: bool = False,
) -> Variant:
    """The form for adapters of a bucket; bucket 0 is SwiGLU alone."""
    check_tiles(bucket, tile_rows, dtype)
    element = type_name(dtype)
    block_o, block_r = BLOCKS[dtype]
    return Variant(
        name=f"{element} bucket {bucket} rows {tile_rows}"
        + f" unit {unit}" * (unit != 16)
        + " keep" * keep
        + " split" * is_split,
        kernel=_expand_swiglu_kernel,
        types={
            "s_ptr": "*fp32" if is_split else f"*{element}",
            **dict.fromkeys(("weights_ptr", "gate_ptr", "up_ptr", "h_ptr"), f"*{element}"),
            **TABLES,
            **dict.fromkeys(INTEGERS, "i32"),
        },
        constants={
            "UNIT": unit,
            "BUCKET": bucket,
            "BUCKET_INDEX": BUCKETS.index(bucket),
            "BLOCK_T": tile_rows,
            "BLOCK_O": block_o // 2,  # there are two accumulators
            "BLOCK_R": min(bucket, block_r),
            "KEEP": keep,
            "IS_SPLIT": is_split,
        },
        num_warps=num_warps(tile_rows, dtype),
        num_stages=2,
        has_dot=bucket > 0 and dtype != torch.float32,
        max_narrow_loads=24,
        max_registers=max_registers(tile_rows, dtype, is_split=is_split),
    )


def all_variants(shape: ModelShape) -> Iterator[Variant]:
    """Every variant that a model can launch, whatever its shape."""
    for dtype, heights in TILE_ROWS.items():
        for tile_rows in heights:
            yield swiglu_variant(0, tile_rows, dtype)
    for form in tile_forms():
        yield swiglu_variant(*form)
        yield swiglu_variant(*form, keep=True)
        yield swiglu_variant(*form, is_split=True)
        yield swiglu_variant(*form, keep=True, is_split=True)
