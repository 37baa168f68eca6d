"""Wishes of rows, and scores, cut apart and joined again."""

from dataclasses import fields

import numpy as np
import pytest

from weft.engine.sampling.sampler import uniforms
from weft.engine.sampling.scoring import Scores, Scoring


def random_scoring(num_rows: int, seed: int) -> Scoring:
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, 3, num_rows)
    return Scoring(
        rows_R=np.sort(rng.choice(4 * num_rows, num_rows, replace=False)),
        cells_R=cells,
        tokens_C=rng.integers(0, 97, cells.sum()),
        top_R=rng.integers(0, 3, num_rows),
        alternatives_R=rng.integers(0, 4, num_rows),
        temperature_R=rng.random(num_rows),
        streams_R=np.full(num_rows, seed, np.uint64),  # as of the rows of one prompt
        positions_R=np.arange(num_rows),
    )


def random_scores(scoring: Scoring, seed: int) -> Scores:
    rng = np.random.default_rng(seed)
    sizes = (len(scoring.tokens_C), *[scoring.num_entries] * 2, *[scoring.num_alternatives] * 2)
    return Scores(*(rng.random(size).astype(np.float32) for size in sizes))


def assert_same(one: Scoring | Scores | None, other: Scoring | Scores) -> None:
    assert one is not None
    for field in fields(other):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))


@pytest.mark.parametrize("bounds", [[0, 9], [0, 4, 9], [0, 0, 1, 8, 9]])
def test_pieces_joined_are_the_whole(bounds: list[int]) -> None:
    whole = random_scoring(9, 1)
    pieces = whole.cut(bounds)
    assert [piece.num_rows for piece in pieces] == np.diff(bounds).tolist()
    assert_same(Scoring.join(pieces), whole)


def test_rows_of_a_chunk_are_counted_from_its_first() -> None:
    whole = random_scoring(9, 2)
    chunks = [(first, first + 6) for first in range(0, 36, 6)]
    parts = [whole.between(*chunk) for chunk in chunks]
    found = [
        part.shifted(first)
        for (first, _), part in zip(chunks, parts, strict=True)
        if part is not None
    ]
    assert all(set(part.rows_R) <= set(range(6)) for part in parts if part)
    assert_same(Scoring.join(found), whole)


def test_a_chunk_of_which_nothing_is_wanted_is_none() -> None:
    assert random_scoring(9, 2).between(36, 40) is None


def test_rows_of_which_nothing_is_wanted_are_left_out() -> None:
    whole = random_scoring(60, 3)
    kept = whole.without_idle_rows()
    is_idle = (whole.cells_R + whole.top_R + whole.alternatives_R) == 0
    assert is_idle.any()
    assert kept.rows_R.tolist() == whole.rows_R[~is_idle].tolist()
    assert kept.tokens_C.tolist() == whole.tokens_C.tolist()


def test_alternatives_take_the_same_numbers_however_rows_are_cut() -> None:
    whole = random_scoring(9, 4)
    numbers = [uniforms(*piece.alternative_places()) for piece in whole.cut([0, 3, 9])]
    np.testing.assert_array_equal(np.concatenate(numbers), uniforms(*whole.alternative_places()))
    assert len(np.unique(np.concatenate(numbers))) == whole.num_alternatives


def test_a_row_with_more_alternatives_begins_with_those_of_fewer() -> None:
    base = random_scoring(2, 5)
    few, many = (
        Scoring(**{**{f.name: getattr(base, f.name) for f in fields(base)}, "alternatives_R": wish})
        for wish in (np.array([2, 1]), np.array([5, 3]))
    )
    streams, numbers = many.alternative_places()
    picked = [0, 1, 5]
    assert few.alternative_places()[0].tolist() == streams[picked].tolist()
    assert few.alternative_places()[1].tolist() == numbers[picked].tolist()


def test_scores_are_dealt_to_those_that_wanted_them() -> None:
    wanted = [random_scoring(3, 6), None, random_scoring(5, 7)]
    found = [random_scores(each, 8) for each in wanted if each is not None]
    dealt = Scores.join(found).deal(wanted)
    assert dealt[1] is None
    assert_same(dealt[0], found[0])
    assert_same(dealt[2], found[1])


@pytest.mark.parametrize("name", ["logprobs_C", "top_logprobs_E", "alternative_logprobs_A"])
def test_one_score_that_is_not_finite_is_noticed(name: str) -> None:
    scores = random_scores(random_scoring(9, 9), 9)
    assert scores.is_finite
    getattr(scores, name)[-1] = np.nan
    assert not scores.is_finite
