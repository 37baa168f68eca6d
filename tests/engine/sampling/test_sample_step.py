"""The arrays of one step of generation."""

import numpy as np

from weft.engine.adapters.store import WeightsVersion
from weft.engine.adapters.targets import Targets
from weft.engine.sampling.sample_step import Piece, pack_pieces, plan_step
from weft.engine.sampling.scoring import Scoring


def piece(
    tokens: list[int],
    version: WeightsVersion | None = None,
    cached: int = 0,
    draws: int = 1,
    top: int = 0,
) -> Piece:
    return Piece(
        version=version,
        tokens=np.array(tokens),
        cached=cached,
        pages=[7, 8],
        settings=(1.0, -1, 1.0),
        streams=tuple(range(100, 100 + draws)),
        position=cached,
        top=top,
        scoring=scoring_of(len(tokens) - 1, tokens[1:]) if len(tokens) > 2 else None,
    )


def scoring_of(num_rows: int, tokens: list[int]) -> Scoring:
    """One token to score after each row, and nothing else."""
    zeros = np.zeros(num_rows, np.int64)
    return Scoring(
        rows_R=np.arange(num_rows),
        cells_R=zeros + 1,
        tokens_C=np.array(tokens),
        top_R=zeros,
        alternatives_R=zeros,
        temperature_R=np.ones(num_rows),
        streams_R=zeros.astype(np.uint64),
        positions_R=np.arange(num_rows),
    )


def version(number: int, rank: int) -> WeightsVersion:
    return WeightsVersion(number, rank, 1.0, Targets.ATTN | Targets.MLP, 0)


def test_pieces_of_one_version_lie_together_and_the_base_model_comes_last() -> None:
    large, small = version(1, 64), version(2, 8)
    pieces = [piece([1]), piece([2], large), piece([3], small), piece([4], large), piece([5])]
    versions, packed = pack_pieces(pieces)
    assert versions == [small, large, None]
    assert [int(each.tokens[0]) for each in packed] == [3, 2, 4, 1, 5]


def test_rows_positions_and_draws_follow_the_pieces() -> None:
    large = version(1, 64)
    pieces = [piece([11, 12, 13], large, draws=2), piece([21], large, 9), piece([31, 32], None, 4)]
    step = plan_step(pieces)
    assert step.tokens_T.tolist() == [11, 12, 13, 21, 31, 32]
    assert step.positions_T.tolist() == [0, 1, 2, 9, 4, 5]
    assert step.last_rows_N.tolist() == [2, 3, 5]
    assert step.unit_rows_U.tolist() == [4, 2]
    assert step.unit_sequences_U.tolist() == [2, 1]
    assert step.draw_sequences_M.tolist() == [0, 0, 1, 2]
    assert step.streams_M.tolist() == [100, 101, 100, 100]
    assert step.draw_positions_M.tolist() == [0, 0, 9, 4]


def test_each_draw_of_a_piece_reports_as_many_likeliest_tokens() -> None:
    step = plan_step([piece([11], draws=2, top=5), piece([21]), piece([31], top=1)])
    assert step.top_M.tolist() == [5, 5, 0, 1]


def test_what_is_wanted_after_rows_of_a_piece_is_wanted_after_these_rows_of_the_step() -> None:
    large = version(1, 64)
    step = plan_step([piece([11, 12], large), piece([21, 22, 23]), piece([31, 32, 33, 34])])
    assert step.scoring is not None
    assert step.scoring.rows_R.tolist() == [2, 3, 5, 6, 7]
    assert step.scoring.tokens_C.tolist() == [22, 23, 32, 33, 34]
    assert step.scored_N.tolist() == [0, 2, 3]
    assert step.scored_units_U.tolist() == [0, 5]


def test_a_step_of_which_nothing_is_wanted_scores_nothing() -> None:
    step = plan_step([piece([11]), piece([21, 22])])
    assert step.scoring is None
    assert step.scored_units_U.tolist() == [0]


def test_deterministic_steps_have_a_multiple_of_sixteen_rows() -> None:
    step = plan_step([piece([11, 12, 13])], is_deterministic=True)
    assert (len(step.tokens_T), step.padding) == (16, 13)
    assert step.tokens_T[3:].tolist() == [0] * 13
