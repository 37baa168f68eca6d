"""How the rows of the head are cut into chunks of logits. Pure arithmetic.

The logits of a batch do not fit into memory, so the head works on a few hundred rows at a time.
Rows whose unit has an adapter on the unembedding lie entry by entry, so that one batched matmul
serves all entries of a piece; the others fill what is left. A unit is cut at multiples of the
chunk size from its own first row, whatever its neighbours.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .plan import Block, SegmentPlan

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Piece:
    """Places start..start + entries * length of a chunk, which are rows of entries of a stack."""

    block: Block  # names stack and entries; its own rows are those of the whole units
    start: int
    length: int
    is_first: bool  # of its entries: later pieces add to what it wrote

    @property
    def stop(self) -> int:
        return self.start + self.block.num_entries * self.length


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows of the head. `rows` [C] indexes the head's rows; -1 is padding."""

    rows: Int64s
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Span:
    """Adjacent rows of one unit, counted from its first row that the head has."""

    unit: int
    start: int
    num_rows: int


def cut_units(
    counts: npt.NDArray[np.integer], order: npt.NDArray[np.integer], chunk_rows: int
) -> list[list[Span]]:
    """Cut units into chunks of at most `chunk_rows` rows, for kernels that need no equal lengths.

    Args:
        counts: rows of each unit.
        order: in which the units are taken.
    """
    chunks: list[list[Span]] = []
    space = 0
    for unit in order.tolist():
        for start in range(0, int(counts[unit]), chunk_rows):
            num_rows = min(chunk_rows, int(counts[unit]) - start)
            if num_rows > space:
                chunks.append([])
                space = chunk_rows
            chunks[-1].append(Span(unit, start, num_rows))
            space -= num_rows
    return chunks


def cut_head(plan: SegmentPlan, chunk_rows: int, row_multiple: int = 1) -> list[Chunk]:
    """Cut all rows of a segment plan into chunks of at most `chunk_rows` places.

    Args:
        plan: the head's rows, cut by unit; rows without adapter are in no block.
        chunk_rows: a multiple of `row_multiple`.
        row_multiple: chunks are padded to a multiple of so many places.
    """
    builder = _Builder(chunk_rows, row_multiple)
    is_plain = np.ones(plan.num_rows, bool)
    for block in plan.blocks:
        rows = _matrix(block)
        is_plain[rows[rows >= 0]] = False
        if block.length <= chunk_rows:
            builder.add_entries(block, rows)
        else:
            builder.add_long(block, rows)
    builder.add_plain(np.flatnonzero(is_plain))
    return builder.finish()


class _Builder:
    def __init__(self, chunk_rows: int, row_multiple: int) -> None:
        self._chunk_rows = chunk_rows
        self._row_multiple = row_multiple
        self._chunks: list[Chunk] = []
        self._rows: list[Int64s] = []
        self._pieces: list[Piece] = []
        self._used = 0

    @property
    def _space(self) -> int:
        return self._chunk_rows - self._used

    def add_entries(self, block: Block, rows: Int64s) -> None:
        """Whole entries, as many to a chunk as fit."""
        done = 0
        while done < block.num_entries:
            count = min(block.num_entries - done, self._space // block.length)
            if count:
                part = _entries(block, done, done + count)
                self._put(part, rows[done : done + count], is_first=True)
                done += count
            else:
                self._close()

    def add_long(self, block: Block, rows: Int64s) -> None:
        """Entries longer than a chunk, one after the other."""
        for entry in range(block.num_entries):
            part = _entries(block, entry, entry + 1)
            for start in range(0, block.length, self._chunk_rows):
                span = rows[entry : entry + 1, start : start + self._chunk_rows]
                if span.shape[1] > self._space:
                    self._close()
                self._put(part, span, is_first=start == 0)

    def add_plain(self, rows: Int64s) -> None:
        while len(rows):
            if not self._space:
                self._close()
            self._rows.append(rows[: self._space])
            rows, self._used = rows[self._space :], self._used + len(rows[: self._space])

    def finish(self) -> list[Chunk]:
        self._close()
        return self._chunks

    def _put(self, block: Block, rows: Int64s, is_first: bool) -> None:
        self._pieces.append(Piece(block, self._used, rows.shape[1], is_first))
        self._rows.append(rows.reshape(-1))
        self._used += rows.size

    def _close(self) -> None:
        if not self._used:
            return
        padding = np.full(-self._used % self._row_multiple, -1)
        self._chunks.append(Chunk(np.concatenate([*self._rows, padding]), tuple(self._pieces)))
        self._rows, self._pieces, self._used = [], [], 0


def _matrix(block: Block) -> Int64s:
    shape = (block.num_entries, block.length)
    if block.start >= 0:
        return block.start + np.arange(shape[0] * shape[1]).reshape(shape)
    return block.rows.reshape(shape)


def _entries(block: Block, first: int, last: int) -> Block:
    start, length = block.first, block.length
    return Block(block.stack, start + first, start + last, length, -1, block.rows[:0])
