"""The arrays of one step of generation."""

import numpy as np

from weft.engine.adapters.store import WeightsVersion
from weft.engine.adapters.targets import Targets
from weft.engine.sampling.sample_step import Piece, pack_pieces, plan_step


def piece(
    tokens: list[int], version: WeightsVersion | None = None, cached: int = 0, draws: int = 1
) -> Piece:
    return Piece(
        version=version,
        tokens=np.array(tokens),
        cached=cached,
        pages=[7, 8],
        settings=(1.0, -1, 1.0),
        streams=tuple(range(100, 100 + draws)),
        position=cached,
        targets=np.array(tokens[1:] if len(tokens) > 2 else [], np.int64),
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


def test_the_targets_of_a_piece_are_scored_from_its_first_row_on() -> None:
    step = plan_step([piece([11, 12]), piece([21, 22, 23]), piece([31, 32, 33, 34])])
    assert step.scored_rows_R.tolist() == [2, 3, 5, 6, 7]
    assert step.scored_targets_R.tolist() == [22, 23, 32, 33, 34]
    assert step.scored_units_U.tolist() == [5]


def test_deterministic_steps_have_a_multiple_of_sixteen_rows() -> None:
    step = plan_step([piece([11, 12, 13])], is_deterministic=True)
    assert (len(step.tokens_T), step.padding) == (16, 13)
    assert step.tokens_T[3:].tolist() == [0] * 13
