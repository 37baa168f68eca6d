"""Cutting the head's rows into chunks."""

from itertools import pairwise

import numpy as np
import pytest

from weft.kernels.head_plan import cut_head, cut_units
from weft.kernels.plan import build_plan


def test_plain_rows_fill_chunks() -> None:
    chunks = cut_head(build_plan([40], [0], [0]), 16)
    assert [len(chunk.rows) for chunk in chunks] == [16, 16, 8]
    assert not any(chunk.pieces for chunk in chunks)


def test_entries_of_one_length_share_a_piece() -> None:
    chunks = cut_head(build_plan([16, 16, 16], [4, 4, 4], [4, 4, 4]), 32)
    shapes = [
        [(piece.block.first, piece.block.last, piece.length) for piece in chunk.pieces]
        for chunk in chunks
    ]
    assert shapes == [[(0, 2, 16)], [(2, 3, 16)]]


def test_a_long_unit_is_cut_from_its_own_first_row() -> None:
    chunks = cut_head(build_plan([5, 40], [0, 4], [0, 4]), 16)
    pieces = [piece for chunk in chunks for piece in chunk.pieces]
    assert [(piece.length, piece.is_first) for piece in pieces] == [
        (16, True),
        (16, False),
        (8, False),
    ]
    assert chunks[0].rows[0] == 5


@pytest.mark.parametrize("seed", range(20))
def test_every_row_is_in_one_chunk_and_padding_fills_the_multiple(seed: int) -> None:
    rng = np.random.default_rng(seed)
    num = int(rng.integers(1, 20))
    counts = rng.choice([0, 1, 5, 16, 33, 64, 130, 600], num)
    ranks = rng.choice([0, 4, 16], num)
    multiple = 16 if seed % 2 else 1
    plan = build_plan(counts, ranks, np.full(num, 4), is_deterministic=bool(seed % 2), is_fine=True)
    chunks = cut_head(plan, 64, multiple)
    rows = np.concatenate([chunk.rows for chunk in chunks] or [np.empty(0, np.int64)])
    assert sorted(rows[rows >= 0].tolist()) == list(range(plan.num_rows))
    for chunk in chunks:
        assert len(chunk.rows) % multiple == 0
        assert len(chunk.rows) <= 64
        ends = [(piece.start, piece.stop) for piece in chunk.pieces]
        assert all(end <= start for (_, end), (start, _) in pairwise(ends))


def test_units_are_cut_from_their_own_first_row_and_fill_chunks_whole() -> None:
    chunks = cut_units(np.array([20, 0, 40, 9]), np.array([3, 1, 2, 0]), 16)
    assert [[(span.unit, span.start, span.num_rows) for span in chunk] for chunk in chunks] == [
        [(3, 0, 9)],
        [(2, 0, 16)],
        [(2, 16, 16)],
        [(2, 32, 8)],
        [(0, 0, 16)],
        [(0, 16, 4)],
    ]
