"""The segment plan of the Triton kernels: arithmetic on the host, one copy to the device.

A *segment* is the adjacent rows of one unit, with one adapter or none. It is cut into *tiles* of
at most `tile_rows` rows, which never straddle segments. Tiles are ordered by rank bucket, so that
an adapter is computed at the cost of its own bucket whatever the others have; those without
adapter come first, in bucket 0. An *entry* is the segments of one run, in the order in which their
gradients are added; it is cut into *chunks*, the rows whose gradients are summed apart. All of it
serves every layer of a batch, forward and backward.
S segments, T tiles, E entries, C chunks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..layout import Layout

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
Counts = Sequence[int] | npt.NDArray[np.int32] | Int64s

BUCKETS = (0, 16, 32, 64, 128, 256)  # rank rows that are computed; 0 is no adapter
S_UNIT = 16  # elements in which places in a projection are counted
# Rows of a chunk, by index of the bucket: more where a chunk's sum is larger, so that writing it
# costs less than a quarter of reading the rows.
CHUNK_ROWS = np.array([1024, 1024, 1024, 1024, 2048, 2048])
# Columns of the records, as the kernels read them.
SEGMENT_START, SEGMENT_RANK, SEGMENT_MASK, SEGMENT_ROW, SEGMENT_ROWS, SEGMENT_S = range(6)
SEGMENT_WIDTH = 8
TILE_SEGMENT, TILE_ROW, TILE_ROWS = range(3)  # of chunks, too
TILE_WIDTH = 4
ENTRY_FIRST, ENTRY_COUNT, ENTRY_GRADIENT, ENTRY_IS_FRESH = range(4)
ENTRY_WIDTH = 4
HEADER_WIDTH = 4  # per bucket: first tile, number of tiles, first entry, number of entries
NOT_TARGETED = -1


@dataclass(frozen=True, slots=True, eq=False)
class TilePlan:
    """Everything that all layers of a batch share, on the host.

    Columns of `segments`: first granule of the adapter's block, rank, target mask, first row,
    number of rows, start of its projection (in units of `S_UNIT` elements). Of `tiles` and
    `chunks`: segment, first row, number of rows. Of `entries`: first chunk, number of chunks, first
    granule of the gradient's block, whether nothing was added to it yet.
    """

    tile_rows: int
    num_rows: int  # of the batch
    header: Int32s  # [buckets, 4]
    segments: Int32s  # [S, 8]
    scales: npt.NDArray[np.float32]  # [S] alpha / rank
    tiles: Int32s  # [T, 4]
    entries: Int32s  # [E, 4]
    chunks: Int32s  # [C, 4] of the entries, one entry after the other
    s_elements: int  # of the projection of one site

    def num_tiles(self, bucket: int) -> int:
        """Tiles of the adapters whose rank is padded to `bucket`."""
        return int(self.header[BUCKETS.index(bucket), 1])

    def num_entries(self, bucket: int) -> int:
        """Entries of the same."""
        return int(self.header[BUCKETS.index(bucket), 3])

    @property
    def used_buckets(self) -> tuple[int, ...]:
        """Buckets above 0 that have tiles."""
        return tuple(bucket for bucket in BUCKETS[1:] if self.num_tiles(bucket))


def build_tiles(
    row_counts: Counts,
    *,
    num_rows: int,
    starts: Counts,
    ranks: Counts,
    masks: Counts,
    scales: Sequence[float],
    gradients: Counts | None = None,
    is_fresh: Sequence[bool] | None = None,
    unit_order: Counts | None = None,
    tile_rows: int = 64,
) -> TilePlan:
    """Cut a batch whose segments lie one after the other from row 0.

    Args:
        row_counts: rows of each segment, 0 allowed.
        num_rows: rows of the batch; those beyond the segments' have no adapter.
        starts: first granule of each segment's adapter in the weights arena; any number where
            there is none.
        ranks: of each segment's adapter, 0 for none.
        masks: target mask of each, 0 for none.
        scales: alpha / rank of each.
        gradients: first granule of the block that takes each segment's gradient, -1 for none;
            equal ones are one run, hence one adapter. Default: none has one.
        is_fresh: per segment, whether that block has no content yet; equal within a run.
        unit_order: orders the segments of one run in the sum; default as they lie.
        tile_rows: 16, 64 or 128.
    """
    counts = np.append(np.asarray(row_counts, np.int64), 0)
    num_segments = len(counts) - 1
    counts[-1] = num_rows - counts.sum()
    if counts[-1] < 0:
        raise ValueError(f"{num_rows} rows, but the segments have {num_rows - counts[-1]}")
    rows = np.cumsum(counts) - counts
    own_ranks, own_masks = (np.append(np.asarray(x, np.int64), 0) for x in (ranks, masks))
    own_ranks[(own_masks == 0) | (counts == 0)] = 0
    buckets = bucket_index(own_ranks)
    s_units = counts * np.asarray(BUCKETS)[buckets] // S_UNIT
    segments = np.zeros((num_segments + 1, SEGMENT_WIDTH), np.int32)
    own_starts, s_starts = np.append(np.asarray(starts, np.int64), 0), np.cumsum(s_units) - s_units
    columns = [own_starts, own_ranks, own_masks, rows, counts, s_starts]
    segments[:, : len(columns)] = np.stack(columns, axis=1)
    by_bucket = np.argsort(buckets, kind="stable")
    tiles = _cut(by_bucket, counts, rows, np.full(len(counts), tile_rows))
    members, blocks = _members(own_ranks, buckets, gradients, unit_order)
    heights = CHUNK_ROWS[buckets]
    chunks = _cut(members, counts, rows, heights)
    entries = _entries(members, blocks, -(-counts // heights), is_fresh)
    owners = chunks[entries[:, ENTRY_FIRST], TILE_SEGMENT]
    header = np.zeros((len(BUCKETS), HEADER_WIDTH), np.int32)
    for column, segment in ((0, tiles[:, TILE_SEGMENT]), (2, owners)):
        header[:, column + 1] = np.bincount(buckets[segment], minlength=len(BUCKETS))
        header[:, column] = np.cumsum(header[:, column + 1]) - header[:, column + 1]
    return TilePlan(
        tile_rows=tile_rows,
        num_rows=num_rows,
        header=header,
        segments=segments,
        scales=np.append(np.asarray(scales, np.float32), np.float32(0)),
        tiles=tiles,
        entries=entries,
        chunks=chunks,
        s_elements=int(s_units.sum()) * S_UNIT,
    )


def bucket_index(ranks: Int64s) -> Int64s:
    """Index into `BUCKETS` of the smallest bucket that holds each rank."""
    return np.searchsorted(np.asarray(BUCKETS), ranks)


def site_table(layout: Layout, device: torch.device | str) -> Tensor:
    """Where the rows of every site lie in a block: [masks, sites, 2] int32, A and Bt.

    In granules per rank: multiply by the adapter's rank and add its block's start.
    `NOT_TARGETED` where a mask does not have the site.
    """
    num_masks = 1 << max(family.bit_length() for family in layout.families)
    table = np.full((num_masks, len(layout.shapes), 2), NOT_TARGETED, np.int32)
    for mask in range(num_masks):
        for site, offsets in layout.site_offsets(1, mask).items():
            table[mask, site] = offsets
    return torch.from_numpy(table).to(device)


def _cut(segments: Int64s, counts: Int64s, rows: Int64s, heights: Int64s) -> Int32s:
    """Cut segments, one after the other, into pieces of at most `heights[segment]` rows."""
    nums = -(-counts // heights)[segments]
    owners = np.repeat(segments, nums)
    places = np.arange(len(owners)) - np.repeat(np.cumsum(nums) - nums, nums)
    firsts = places * heights[owners]  # counted from the segment's first row
    pieces = np.zeros((len(owners), TILE_WIDTH), np.int32)
    pieces[:, TILE_SEGMENT] = owners
    pieces[:, TILE_ROW] = rows[owners] + firsts
    pieces[:, TILE_ROWS] = np.minimum(counts[owners] - firsts, heights[owners])
    return pieces


def _members(
    ranks: Int64s, buckets: Int64s, gradients: Counts | None, unit_order: Counts | None
) -> tuple[Int64s, Int64s]:
    """Segments that have a gradient, by bucket, then run, then order; and the block of each."""
    blocks = np.full(len(ranks), -1, np.int64)
    if gradients is not None:
        blocks[:-1] = gradients
    keys = np.arange(len(ranks))
    if unit_order is not None:
        keys[:-1] = np.asarray(unit_order)
    members = np.flatnonzero((blocks >= 0) & (ranks > 0))
    members = members[np.lexsort((keys[members], blocks[members], buckets[members]))]
    return members, blocks[members]


def _entries(
    members: Int64s, blocks: Int64s, num_chunks: Int64s, is_fresh: Sequence[bool] | None
) -> Int32s:
    """An entry for each block; `num_chunks` are those of each of the batch's segments."""
    first_members = np.flatnonzero(np.diff(blocks, prepend=-1))
    ends = np.cumsum(num_chunks[members])
    firsts = (ends - num_chunks[members])[first_members]
    entries = np.zeros((len(firsts), ENTRY_WIDTH), np.int32)
    entries[:, ENTRY_FIRST] = firsts
    entries[:, ENTRY_COUNT] = np.diff(firsts, append=ends[-1:])
    entries[:, ENTRY_GRADIENT] = blocks[first_members]
    if is_fresh is not None:
        entries[:, ENTRY_IS_FRESH] = np.append(is_fresh, False)[members[first_members]]
    return entries


class TileBuffers:
    """A plan on the device, in tensors that keep pointer, shape and capacity from batch to batch.

    One buffer holds all records; a new plan is one copy into it. Captured graphs stay valid as long
    as `generation` does: it grows when a plan did not fit and larger buffers were taken.

    Args:
        num_segments, num_tiles: capacities to begin with.
    """

    def __init__(
        self, device: torch.device | str, *, num_segments: int = 64, num_tiles: int = 256
    ) -> None:
        self.device = torch.device(device)
        self.generation = 0
        self._take(num_segments, num_tiles)

    @property
    def num_tiles(self) -> int:
        """Capacity; the grid of a captured launch, whose surplus programs end at once."""
        return self.tiles.shape[0]

    def write(self, plan: TilePlan) -> None:
        """Copy a plan to the device; the kernels that follow on the stream read it."""
        if len(plan.segments) > len(self.segments) or len(plan.tiles) > len(self.tiles):
            self.generation += 1
            self._take(
                max(2 * len(self.segments), len(plan.segments)),
                max(2 * len(self.tiles), len(plan.tiles)),
            )
        if self._copied is not None:
            self._copied.synchronize()  # of the last plan, long ago
        host = self._host.numpy()
        for name, values in (
            ("header", plan.header),
            ("segments", plan.segments),
            ("scales", plan.scales.view(np.int32)),
            ("tiles", plan.tiles),
            ("entries", plan.entries),
            ("chunks", plan.chunks),
        ):
            start = self._places[name]
            host[start : start + values.size] = values.reshape(-1)
        self._device.copy_(self._host, non_blocking=True)
        if self._copied is not None:
            self._copied.record()

    def _take(self, num_segments: int, num_tiles: int) -> None:
        shapes = {
            "header": (len(BUCKETS), HEADER_WIDTH),
            "segments": (num_segments, SEGMENT_WIDTH),
            "scales": (num_segments,),
            "tiles": (num_tiles, TILE_WIDTH),
            "entries": (num_segments, ENTRY_WIDTH),
            "chunks": (num_tiles, TILE_WIDTH),  # none is lower than a tile
        }
        sizes = {name: -(-int(np.prod(shape)) // 16) * 16 for name, shape in shapes.items()}
        self._places = dict(zip(sizes, np.cumsum([0, *sizes.values()])[:-1].tolist(), strict=True))
        is_cuda = self.device.type == "cuda"
        self._host = torch.zeros(sum(sizes.values()), dtype=torch.int32, pin_memory=is_cuda)
        self._device = self._host.to(self.device, copy=True)
        self._copied = torch.Event(self.device) if is_cuda else None
        parts = {
            name: self._device[self._places[name] :][: int(np.prod(shape))].view(shape)
            for name, shape in shapes.items()
        }
        self.header, self.segments, self.tiles = parts["header"], parts["segments"], parts["tiles"]
        self.entries, self.chunks = parts["entries"], parts["chunks"]
        self.scales = parts["scales"].view(torch.float32)
