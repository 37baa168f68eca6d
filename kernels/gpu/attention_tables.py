"""Who attends to what in a batch: arithmetic on the host, once for all layers.

A *row* is a query head of a token: the R query heads of a key head are R adjacent rows. A *tile* is
adjacent rows of one sequence, counted from the first that is computed now. An *item* is what one
program does: a tile and one split of the keys it sees. Nothing of a sequence's tiles and splits
depends on the others or on its place; only the order of items does, long ones first.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from .device_ints import DeviceInts, Int32s

Counts = npt.NDArray[np.int64]

SPLIT = 1024  # keys; the tree of sums depends on it
# Columns of the records, as the kernels read them.
SEQUENCE_TOKEN, SEQUENCE_TOKENS, SEQUENCE_CACHED, SEQUENCE_KEYS = range(4)
ITEM_SEQUENCE, ITEM_ROW, ITEM_SPLIT, ITEM_PARTIAL = range(4)
RECORD = 4
WHOLE = -1  # in place of a partial: the tile has one split, whose result is the result


@dataclass(frozen=True, slots=True, eq=False)
class Sequences:
    """Sequences whose last tokens are rows of the batch; each array is [N]."""

    first_tokens: Counts  # rows of the batch where they begin
    num_tokens: Counts  # rows of the batch
    num_cached: Counts  # tokens before those, whose keys are there already
    first_keys: Counts  # row of the batch, or place in the page table, of the first key

    @classmethod
    def packed(cls, bounds: Counts) -> "Sequences":
        """Whole sequences between `bounds`, [N + 1]."""
        return cls(bounds[:-1], np.diff(bounds), np.zeros(len(bounds) - 1, np.int64), bounds[:-1])

    def where(self, is_chosen: npt.NDArray[np.bool_]) -> "Sequences":
        """Some of them."""
        arrays = self.first_tokens, self.num_tokens, self.num_cached, self.first_keys
        return Sequences(*(array[is_chosen] for array in arrays))

    def table(self) -> Int32s:
        """[N, 4], columns as above."""
        columns = (self.first_tokens, self.num_tokens, self.num_cached, self.first_keys)
        return np.stack(columns, axis=1).astype(np.int32)


@dataclass(frozen=True, slots=True, eq=False)
class Items:
    """The items of a batch, in groups whose partial results are in memory together.

    Columns of `items`: sequence, first row, split, first row of the partial result or `WHOLE`. Of
    `merges`, the tiles with several splits: sequence, first row, number of splits, first row of
    the partial results, which lie split by split.
    """

    items: Int32s
    merges: Int32s
    item_groups: Int32s  # number of items in each group
    merge_groups: Int32s  # number of merges
    num_partials: int  # rows of partial results, in the largest group


def list_items(sequences: Sequences, repeats: int, *, block_rows: int, max_partials: int) -> Items:
    """Cut sequences with `repeats` query heads a key head into items.

    Args:
        max_partials: rows of partial results after which a group ends.
    """
    num_rows = sequences.num_tokens * repeats
    owners, rows = cut(num_rows, block_rows).T.astype(np.int64)
    tile_rows = np.minimum(num_rows[owners] - rows, block_rows)
    ends = sequences.num_cached[owners] + (rows + tile_rows - 1) // repeats + 1
    splits = -(-ends // SPLIT)
    partials = np.where(splits > 1, splits * tile_rows, 0)
    before = np.cumsum(partials) - partials
    groups = before // max_partials
    num_groups = int(groups[-1]) + 1 if len(groups) else 0
    before -= before[np.searchsorted(groups, groups)]
    tiles = np.repeat(np.arange(len(owners)), splits)
    split = np.arange(len(tiles)) - np.repeat(np.cumsum(splits) - splits, splits)
    places = np.where(splits[tiles] > 1, before[tiles] + split * tile_rows[tiles], WHOLE)
    num_keys = np.minimum(ends[tiles] - split * SPLIT, SPLIT)
    order = np.lexsort((-num_keys, groups[tiles]))
    items = np.stack([owners[tiles], rows[tiles], split, places], axis=1)[order]
    is_split = splits > 1
    merges = np.stack([owners, rows, splits, before], axis=1)[is_split]
    return Items(
        items=items.astype(np.int32),
        merges=merges.astype(np.int32),
        item_groups=np.bincount(groups[tiles], minlength=num_groups).astype(np.int32),
        merge_groups=np.bincount(groups[is_split], minlength=num_groups).astype(np.int32),
        num_partials=int(np.bincount(groups, partials).max()) if num_groups else 0,
    )


def cut(counts: Counts, size: int) -> Int32s:
    """[tiles, 2]: owner and first row of each, for owners with so many rows, `size` a tile."""
    num_tiles = -(-counts // size)
    owners = np.repeat(np.arange(len(counts)), num_tiles)
    places = np.arange(len(owners)) - np.repeat(np.cumsum(num_tiles) - num_tiles, num_tiles)
    return np.stack([owners, places * size], axis=1).astype(np.int32)


@dataclass(frozen=True, slots=True, eq=False)
class ItemTables:
    """Sequences and items on the device."""

    sequences: Tensor
    items: Tensor
    merges: Tensor
    host: Items

    @classmethod
    def of(cls, on_device: Sequence[Tensor], host: Items) -> "ItemTables":
        """The three tensors, in this order."""
        sequences, items, merges = on_device
        return cls(sequences, items, merges, host)

    def groups(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Items and merges of each group."""
        item = merge = 0
        counts = zip(self.host.item_groups, self.host.merge_groups, strict=True)
        for num_items, num_merges in counts:
            yield self.items[item : item + num_items], self.merges[merge : merge + num_merges]
            item, merge = item + num_items, merge + num_merges


@dataclass(frozen=True, slots=True, eq=False)
class PackedTables:
    """A packed batch on the device, for forward and backward."""

    num_tokens: int  # of all sequences; rows of the batch beyond have no attention
    forward: ItemTables
    query_tiles: Tensor  # [tiles, 2] sequence, first row
    key_tiles: Tensor  # [tiles, 2] sequence, first key


def build_packed(
    bounds: Counts,
    repeats: int,
    *,
    forward_rows: int,
    query_rows: int,
    key_rows: int,
    max_partials: int,
    memory: DeviceInts,
) -> PackedTables:
    """Cut the sequences between `bounds`, [N + 1] from 0, into tiles of so many rows and keys."""
    sequences = Sequences.packed(bounds)
    items = list_items(sequences, repeats, block_rows=forward_rows, max_partials=max_partials)
    lengths = sequences.num_tokens
    query_tiles, key_tiles = cut(lengths * repeats, query_rows), cut(lengths, key_rows)
    query_order = np.argsort(-query_tiles[:, 1], kind="stable")
    key_order = np.argsort(key_tiles[:, 1] - lengths[key_tiles[:, 0]], kind="stable")
    tables = [items.items, items.merges, query_tiles[query_order], key_tiles[key_order]]
    *forward, query_tiles_, key_tiles_ = memory.write([sequences.table(), *tables])
    return PackedTables(int(bounds[-1]), ItemTables.of(forward, items), query_tiles_, key_tiles_)
