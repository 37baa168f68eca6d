"""The tree of the sums of weight gradients, and what its kernels share.

A chunk is at most `tiles.CHUNK_ROWS` rows of one unit, counted from the unit's first row. Chunks
are summed from zero, and added to the block one after the other in the order of the entry's units,
so that the bits of a gradient depend on the run's own units alone. Who sums which chunk is free.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from . import tiles
from .records import segment_rows, tile_record
from .shrink import check_bucket
from .tiles import BUCKETS
from .variants import Variant, type_name

# Rank rows of one program. With 128 the direct form has 240 registers on sm_90 and spills on sm_80,
# with 64 it has 130 and 239; u comes from L2 for all but the first of the programs of a column block.
MAX_RANK_BLOCK = 64
BLOCK_D = 128
TABLES = dict.fromkeys(
    ("table_ptr", "header_ptr", "segments_ptr", "entries_ptr", "chunks_ptr"), "*i32"
)
INTEGERS = ["site", "half", "num_sites", "s_units", "width_units", "pitch_units"]
_ENTRY_WIDTH = tl.constexpr(tiles.ENTRY_WIDTH)
_ENTRY_FIRST = tl.constexpr(tiles.ENTRY_FIRST)
_ENTRY_COUNT = tl.constexpr(tiles.ENTRY_COUNT)
_ENTRY_GRADIENT = tl.constexpr(tiles.ENTRY_GRADIENT)
_ENTRY_IS_FRESH = tl.constexpr(tiles.ENTRY_IS_FRESH)


@triton.jit
def entry_chunks(entries_ptr, entry):
    """First chunk of an entry, and number of its chunks."""
    record = entries_ptr + entry * _ENTRY_WIDTH
    return tl.load(record + _ENTRY_FIRST), tl.load(record + _ENTRY_COUNT)


@triton.jit
def entry_block(entries_ptr, entry):
    """First granule of an entry's block, and 1 if the block is fresh."""
    record = entries_ptr + entry * _ENTRY_WIDTH
    return tl.load(record + _ENTRY_GRADIENT), tl.load(record + _ENTRY_IS_FRESH)


@triton.jit
def chunk_sum(
    u_ptr,
    v_ptr,
    segments_ptr,
    chunks_ptr,
    chunk,
    cols,
    ranks,
    width,
    BUCKET: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """sum over the chunk's rows t of u[t, cols] v[t, ranks], [BLOCK_D, BLOCK_R], from zero.

    Columns are the higher side: a rank bucket of 16 or 32 rows is none that tensor cores have.
    """
    segment, row, rows = tile_record(chunks_ptr, chunk)
    segment_row, _, s_start = segment_rows(segments_ptr, segment)
    u_ptr += row.to(tl.int64) * width
    v_ptr += s_start + (row - segment_row).to(tl.int64) * BUCKET
    acc = tl.zeros([BLOCK_D, BLOCK_R], tl.float32)
    for first in range(0, rows, BLOCK_T):
        steps = first + tl.arange(0, BLOCK_T)
        is_row = (steps < rows)[:, None]
        is_u = is_row & (cols < width)[None, :]
        places = steps.to(tl.int64)[:, None]
        u = tl.load(u_ptr + places * width + cols[None, :], mask=is_u, other=0.0)
        v = tl.load(v_ptr + places * BUCKET + ranks[None, :], mask=is_row, other=0.0)
        acc = tl.dot(tl.trans(u), v, acc, input_precision="ieee")
    return acc


def sum_variant(
    kernel: Any, bucket: int, dtype: torch.dtype, unit: int, target: str, *integers: str
) -> Variant:
    """The form of a kernel that sums chunks, with its own target and more integers."""
    check_bucket(bucket)
    element = type_name(dtype)
    is_half = dtype == torch.bfloat16  # else products are unrolled, and narrower
    return Variant(
        name=f"{element} bucket {bucket}" + f" unit {unit}" * (unit != 16),
        kernel=kernel,
        types={
            **{f"u{index}_ptr": f"*{element}" for index in range(3)},
            "v_ptr": f"*{element}",
            target: "*fp32",
            **TABLES,
            **dict.fromkeys([*INTEGERS, *integers], "i32"),
        },
        constants={
            "UNIT": unit,
            "BUCKET": bucket,
            "BUCKET_INDEX": BUCKETS.index(bucket),
            "BLOCK_T": 64 if is_half else 16,
            "BLOCK_D": BLOCK_D,
            "BLOCK_R": min(bucket, MAX_RANK_BLOCK if is_half else 32),
        },
        num_warps=4 if bucket == 16 else 8,
        num_stages=3,
        has_dot=is_half,
        max_narrow_loads=20,
    )
