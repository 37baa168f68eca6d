"""How the rows of a batch are cut for batched matmuls: pure arithmetic on ranks and lengths.

A *segment* is the adjacent rows of one unit; it uses one adapter or none. Segments of the same
rank bucket and target mask share a *stack*, the padded weights of all of them, one *entry* a
segment. Entries of the same length class form a *block*: one batched matmul with as many matrices
as entries. The bucket and class of a segment depend on that segment alone; the number of blocks is
bounded by buckets times classes, not by segments.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]

RANK_BUCKETS = np.array([8, 16, 32, 64, 128, 256])
HEAD_FAMILY = 4  # bit of the targets that sit behind the final hidden state, not in a layer
EXACT_LENGTH = 512  # rows from which on a segment is never padded
ROW_TILE = 16  # rows that have the same bits in any number of tiles


@dataclass(frozen=True, slots=True)
class Block:
    """Entries first..last - 1 of a stack, each with `length` rows, the last of them padding.

    When the rows of all entries are adjacent and whole, `start` is the first of them and `rows` is
    empty. Otherwise `rows` [entries * length] says which row stands at each place, -1 for padding.
    """

    stack: int
    first: int
    last: int
    length: int
    start: int
    rows: Int64s

    @property
    def num_entries(self) -> int:
        return self.last - self.first


@dataclass(frozen=True, slots=True)
class Stack:
    """The segments, by index in the batch, whose weights are stacked; one entry each."""

    bucket: int  # rank rows of an entry, padding included
    targets: int
    segments: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SegmentPlan:
    """Everything that all layers of a batch share. Segments without adapter or rows are absent."""

    stacks: tuple[Stack, ...]
    blocks: tuple[Block, ...]
    num_rows: int  # of all segments together; further rows of a batch have no adapter


@dataclass(frozen=True, slots=True)
class _Part:
    """The segments of one block, entry by entry."""

    first: int
    last: int
    length_class: int
    segments: Int64s


def packing_order(ranks: Sequence[int], targets: Sequence[int], lengths: Sequence[int]) -> Int64s:
    """The permutation of units that puts those of one block next to each other.

    Units of one block keep their order; those without adapter (rank 0) come last.
    """
    ranks_, masks = np.asarray(ranks), np.asarray(targets) & ~HEAD_FAMILY
    classes = length_class(np.asarray(lengths, np.int64))
    return np.lexsort((classes, masks, rank_bucket(ranks_), ranks_ == 0))


def build_plan(
    row_counts: Sequence[int] | Int64s,
    ranks: Sequence[int] | Int64s,
    targets: Sequence[int] | Int64s,
    *,
    is_deterministic: bool = False,
    is_fine: bool = False,
) -> SegmentPlan:
    """Cut a batch whose segments lie one after the other.

    Args:
        row_counts: rows of each segment, 0 allowed.
        ranks: rank of each segment's adapter, 0 for none.
        targets: target mask of each, 0 for none.
        is_deterministic: always pad to the length class, and that to whole row tiles: the shape of
            a segment's matmuls depends on its own length alone, and the bits of a row not even on
            that. Otherwise segments of equal length are not padded.
        is_fine: pad to multiples of 16 at every length, for where a padded row costs a lot.
    """
    counts = np.asarray(row_counts, np.int64)
    ranks_ = np.where((counts > 0) & (np.asarray(targets) > 0), ranks, 0)
    starts = np.cumsum(counts) - counts
    stacks: list[Stack] = []
    blocks: list[Block] = []
    classes = length_class(counts, is_fine)
    if is_deterministic:
        classes += -classes % ROW_TILE
    for stack, parts in _group(ranks_, np.asarray(targets), classes):
        for part in parts:
            lengths = counts[part.segments]
            is_padded = is_deterministic or bool((lengths != lengths[0]).any())
            length = part.length_class if is_padded else int(lengths[0])
            start, rows = _place(starts[part.segments], lengths, length)
            blocks.append(Block(len(stacks), part.first, part.last, length, start, rows))
        stacks.append(stack)
    return SegmentPlan(tuple(stacks), tuple(blocks), int(counts.sum()))


def length_class(lengths: Int64s, is_fine: bool = False) -> Int64s:
    """Rows to which segments are padded: 1, 2, 4, 8, then multiples of 16, 32, 64 in steps of at
    most a quarter, or when `is_fine` of 16; exact from `EXACT_LENGTH` on."""
    lengths = np.maximum(lengths, 1)
    octave = np.ceil(np.log2(lengths)).astype(np.int64)
    wide = 16 if is_fine else np.maximum(16, (1 << octave) >> 3)
    step = np.where(lengths <= 16, 1 << octave, wide)
    return np.where(lengths >= EXACT_LENGTH, lengths, -(-lengths // step) * step)


def rank_bucket(ranks: Int64s) -> Int64s:
    """Rank rows to which adapters are padded."""
    return RANK_BUCKETS[np.searchsorted(RANK_BUCKETS, ranks)]


def _group(ranks: Int64s, targets: Int64s, classes: Int64s) -> list[tuple[Stack, list[_Part]]]:
    """The segments that have a rank, by stack and by block."""
    keys = np.stack([rank_bucket(ranks), targets, classes])
    order = np.lexsort(keys[::-1])
    order = order[ranks[order] > 0]
    groups: list[tuple[Stack, list[_Part]]] = []
    for segments in _runs_of_equal(keys[:2], order):
        parts = []
        for places in _runs_of_equal(keys[2:, segments], np.arange(len(segments))):
            own, first, last = segments[places], int(places[0]), int(places[-1]) + 1
            parts.append(_Part(first, last, int(classes[own[0]]), own))
        bucket, mask = keys[:2, segments[0]].tolist()
        groups.append((Stack(bucket, mask, tuple(segments.tolist())), parts))
    return groups


def _runs_of_equal(keys: Int64s, order: Int64s) -> list[Int64s]:
    """Cut `order` where any of the keys changes."""
    if not len(order):
        return []
    changes = (np.diff(keys[:, order], axis=1) != 0).any(axis=0)
    return np.split(order, np.flatnonzero(changes) + 1)


def _place(starts: Int64s, lengths: Int64s, length: int) -> tuple[int, Int64s]:
    if (lengths == length).all() and (np.diff(starts) == length).all():
        return int(starts[0]), np.empty(0, np.int64)
    places = np.arange(length)
    rows = np.where(places < lengths[:, None], starts[:, None] + places, -1)
    return -1, rows.reshape(-1)
