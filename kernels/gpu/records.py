"""Reads the records of `tiles.py` and the table of sites inside kernels."""

import triton
import triton.language as tl

from . import tiles

_HEADER_WIDTH = tl.constexpr(tiles.HEADER_WIDTH)
_TILE_WIDTH = tl.constexpr(tiles.TILE_WIDTH)
_TILE_SEGMENT = tl.constexpr(tiles.TILE_SEGMENT)
_TILE_ROW = tl.constexpr(tiles.TILE_ROW)
_TILE_ROWS = tl.constexpr(tiles.TILE_ROWS)
_SEGMENT_WIDTH = tl.constexpr(tiles.SEGMENT_WIDTH)
_SEGMENT_START = tl.constexpr(tiles.SEGMENT_START)
_SEGMENT_RANK = tl.constexpr(tiles.SEGMENT_RANK)
_SEGMENT_MASK = tl.constexpr(tiles.SEGMENT_MASK)
_SEGMENT_ROW = tl.constexpr(tiles.SEGMENT_ROW)
_SEGMENT_ROWS = tl.constexpr(tiles.SEGMENT_ROWS)
_SEGMENT_S = tl.constexpr(tiles.SEGMENT_S)
_S_UNIT = tl.constexpr(tiles.S_UNIT)


@triton.jit
def bucket_tiles(header_ptr, BUCKET_INDEX: tl.constexpr):
    """First tile of a bucket and number of its tiles."""
    place = header_ptr + BUCKET_INDEX * _HEADER_WIDTH
    return tl.load(place), tl.load(place + 1)


@triton.jit
def bucket_entries(header_ptr, BUCKET_INDEX: tl.constexpr):
    """First entry of a bucket and number of its entries."""
    place = header_ptr + BUCKET_INDEX * _HEADER_WIDTH
    return tl.load(place + 2), tl.load(place + 3)


@triton.jit
def tile_record(tiles_ptr, tile):
    """Segment of a tile or a chunk, its first row and its number of rows."""
    place = tiles_ptr + tile * _TILE_WIDTH
    return tl.load(place + _TILE_SEGMENT), tl.load(place + _TILE_ROW), tl.load(place + _TILE_ROWS)


@triton.jit
def segment_adapter(segments_ptr, segment):
    """First granule of a segment's adapter, its rank and its target mask."""
    place = segments_ptr + segment * _SEGMENT_WIDTH
    start, rank = tl.load(place + _SEGMENT_START), tl.load(place + _SEGMENT_RANK)
    return start, rank, tl.load(place + _SEGMENT_MASK)


@triton.jit
def segment_rows(segments_ptr, segment):
    """First row of a segment, its number of rows, and where its part of a projection starts.

    The last in elements from the start of the site's part.
    """
    place = segments_ptr + segment * _SEGMENT_WIDTH
    s_start = tl.load(place + _SEGMENT_S).to(tl.int64) * _S_UNIT
    return tl.load(place + _SEGMENT_ROW), tl.load(place + _SEGMENT_ROWS), s_start


@triton.jit
def site_place(table_ptr, mask, site, half, num_sites):
    """Where rows of a site lie in a block, in granules per rank; negative where it has none.

    `half` is 0 for A, 1 for Bt.
    """
    return tl.load(table_ptr + (mask * num_sites + site) * 2 + half)


@triton.jit
def block_place(start, rank, place, granule_units):
    """First element of the rows at `site_place` in a block that starts at a granule.

    `granule_units` is the granule in units of 16 elements, so that the compiler sees that rows lie
    at multiples of 16 elements.
    """
    return (start + rank * place).to(tl.int64) * granule_units * 16


@triton.jit
def pick(index, first, second, third):
    """One of three pointers."""
    return tl.where(index == 0, first, tl.where(index == 1, second, third))
