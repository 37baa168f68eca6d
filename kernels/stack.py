"""The padded stack of adapters that batched matmuls read, and the planes they write gradients to.

A stack has one entry a segment, all padded to the rank bucket. It is stored part by part: for every
group the A rows of its sites, one after the other, [E, sites * R, D], then for every site its Bt
rows [E, R, O]. Planes of gradients have the same shape. The indices here translate between that and
the unpadded blocks of the arena (`layout.py`), in granules.
E entries, R rank rows of the bucket, D input features, O output features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from .layout import Layout

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor of a stack: [E, num_rows, row elements]."""

    sites: tuple[int, ...]
    is_a: bool  # A rows of all sites of a group, else Bt rows of one site
    num_rows: int
    row_granules: int
    width: int  # elements of a row that mean something
    start: int  # granules of the parts before it, per entry

    @property
    def size(self) -> int:
        """Granules of one entry."""
        return self.num_rows * self.row_granules


@dataclass(frozen=True)
class StackLayout:
    """The parts of a stack for one rank bucket and the families that are stacked.

    Only that portion of a block is meant by "block" below.
    """

    layout: Layout
    bucket: int
    targets: int

    @property
    def parts(self) -> tuple[Part, ...]:
        return _parts(self)

    @property
    def size(self) -> int:
        """Granules of one entry."""
        return self.parts[-1].start + self.parts[-1].size

    def gather_index(self, ranks: Sequence[int], starts: Sequence[int]) -> Int64s:
        """Granules of the weights arena that make up the stack, in its order; 0 where padded.

        Args:
            ranks: rank of each entry.
            starts: first granule of each entry's block.
        """
        relative = np.stack([_relative(self, rank) for rank in ranks])
        absolute = np.where(relative >= 0, relative + np.asarray(starts)[:, None], 0)
        return np.concatenate(
            [absolute[:, part.start : part.start + part.size].reshape(-1) for part in self.parts]
        )

    def scatter_index(self, ranks: tuple[int, ...]) -> Int64s:
        """Granules of the planes that make up the entries' blocks, entry by entry, unpadded."""
        return _scatter_index(self, ranks)

    def block_size(self, rank: int) -> int:
        """Granules of an adapter's block."""
        return self.layout.block_size(rank, self.targets)


@lru_cache(maxsize=256)
def _parts(stack: StackLayout) -> tuple[Part, ...]:
    layout, parts, start = stack.layout, [], 0
    for group in layout.target_groups(stack.targets):
        sites = layout.groups[group]
        a_row = layout.row_granules(sites[0])[0]
        width = layout.shapes[sites[0]][0]
        parts.append(Part(sites, True, len(sites) * stack.bucket, a_row, width, start))
        start += parts[-1].size
        for site in sites:
            b_row = layout.row_granules(site)[1]
            parts.append(Part((site,), False, stack.bucket, b_row, layout.shapes[site][1], start))
            start += parts[-1].size
    return tuple(parts)


@lru_cache(maxsize=1024)
def _relative(stack: StackLayout, rank: int) -> npt.NDArray[np.int32]:
    """For each granule of an entry, part by part, its place in the adapter's block, -1 if padded."""
    offsets = stack.layout.site_offsets(rank, stack.targets)
    pieces = []
    for part in stack.parts:
        rows = np.arange(stack.bucket)[:, None]
        columns = np.arange(part.row_granules)
        for site in part.sites:
            offset = offsets[site][0 if part.is_a else 1]
            places = np.where(rows < rank, offset + rows * part.row_granules + columns, -1)
            pieces.append(places.reshape(-1))
    return np.concatenate(pieces).astype(np.int32)


@lru_cache(maxsize=64)
def _scatter_index(stack: StackLayout, ranks: tuple[int, ...]) -> Int64s:
    chunks = []
    for entry, rank in enumerate(ranks):
        part_start, part_size, local = _places(stack, rank)
        chunks.append(part_start * len(ranks) + part_size * entry + local)
    return np.concatenate(chunks)


@lru_cache(maxsize=1024)
def _places(stack: StackLayout, rank: int) -> tuple[Int64s, Int64s, Int64s]:
    """For each granule of a block: start and size of its part, and place therein."""
    relative = _relative(stack, rank)
    starts = np.concatenate([np.full(part.size, part.start) for part in stack.parts])
    sizes = np.concatenate([np.full(part.size, part.size) for part in stack.parts])
    local = np.arange(len(relative)) - starts
    is_real = relative >= 0
    order = np.empty(stack.block_size(rank), np.int64)
    order[relative[is_real]] = np.flatnonzero(is_real)
    return starts[order], sizes[order], local[order]
