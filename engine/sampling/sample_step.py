"""One step of generation as plain arrays: which rows are computed, what is drawn from them. Pure.

T rows, N sequences, U units (the rows of one weights version), M draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ...kernels.plan import packing_order
from ..adapters.store import WeightsVersion
from .sampler import Settings
from .scoring import Scoring

ROW_MULTIPLE = 16  # rows of a matmul come in such numbers where bits must not vary


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """New rows of one sequence, and the draws that follow the last of them."""

    version: WeightsVersion | None
    tokens: np.ndarray  # rows to compute, int64
    cached: int  # tokens of the sequence before them
    pages: Sequence[int]
    settings: tuple[float, int, float]  # temperature, top_k, top_p
    streams: tuple[int, ...]  # one a draw
    position: int  # of the draws in their streams
    top: int = 0  # likeliest tokens to report with each draw
    scoring: Scoring | None = None  # what is wanted after its rows, None nothing


@dataclass(frozen=True, slots=True, eq=False)
class SampleStep:
    """Everything a step needs but the weights; sequences are in the order of the pieces."""

    tokens_T: np.ndarray  # int64, padding included
    positions_T: np.ndarray  # int64
    tables_NP: np.ndarray  # int64, pages of each sequence
    cached_N: np.ndarray
    fresh_N: np.ndarray  # rows of each sequence
    padding: int  # rows at the end that belong to nobody
    last_rows_N: np.ndarray  # row after which each sequence draws
    unit_rows_U: np.ndarray
    unit_sequences_U: np.ndarray
    draw_sequences_M: np.ndarray  # sequence of each draw
    streams_M: np.ndarray  # uint64
    draw_positions_M: np.ndarray
    settings_M: Settings
    top_M: np.ndarray  # likeliest tokens to report with each draw
    scoring: Scoring | None  # of the step's rows, None nothing
    scored_N: np.ndarray  # rows of each sequence of which something is wanted
    scored_units_U: np.ndarray  # the same of each unit


@dataclass(slots=True)
class _Unit:
    version: WeightsVersion | None
    pieces: list[Piece] = field(default_factory=list)

    @property
    def num_rows(self) -> int:
        return sum(len(piece.tokens) for piece in self.pieces)


def pack_pieces(
    pieces: Sequence[Piece],
) -> tuple[list[WeightsVersion | None], list[Piece]]:
    """Make units of pieces of one weights version, in the order in which adapters are best computed.

    Returns:
        The version of each unit, and the pieces in the order of the units.
    """
    units: dict[int, _Unit] = {}
    for piece in pieces:
        key = 0 if piece.version is None else piece.version.id
        units.setdefault(key, _Unit(piece.version)).pieces.append(piece)
    members = list(units.values())
    if len(members) > 1:
        versions = [unit.version for unit in members]
        order = packing_order(
            [0 if version is None else version.rank for version in versions],
            [0 if version is None else int(version.targets) for version in versions],
            [unit.num_rows for unit in members],
        )
        members = [members[index] for index in order]
    return [unit.version for unit in members], [piece for unit in members for piece in unit.pieces]


def plan_step(pieces: Sequence[Piece], *, is_deterministic: bool = False) -> SampleStep:
    """Lay out the rows of pieces that are already in the order of `pack_pieces`.

    With `is_deterministic` rows are padded to a multiple of `ROW_MULTIPLE`.
    """
    fresh = np.array([len(piece.tokens) for piece in pieces])
    cached = np.array([piece.cached for piece in pieces])
    ends = np.cumsum(fresh)
    num_rows = int(ends[-1])
    padding = -num_rows % ROW_MULTIPLE if is_deterministic else 0
    tokens = np.zeros(num_rows + padding, np.int64)
    np.concatenate([piece.tokens for piece in pieces], out=tokens[:num_rows])
    positions = np.zeros(num_rows + padding, np.int64)
    positions[:num_rows] = np.arange(num_rows) - np.repeat(ends - fresh - cached, fresh)
    tables = np.zeros((len(pieces), max(len(piece.pages) for piece in pieces)), np.int64)
    for row, piece in enumerate(pieces):
        tables[row, : len(piece.pages)] = piece.pages
    num_draws = np.array([len(piece.streams) for piece in pieces])
    changes = [
        index
        for index in range(1, len(pieces))
        if pieces[index].version is not pieces[index - 1].version
    ]
    unit_starts = np.array([0, *changes])
    scored = [
        (int(start), piece.scoring)
        for start, piece in zip(ends - fresh, pieces, strict=True)
        if piece.scoring is not None
    ]
    num_scored = np.array([piece.scoring.num_rows if piece.scoring else 0 for piece in pieces])
    return SampleStep(
        tokens_T=tokens,
        positions_T=positions,
        tables_NP=tables,
        cached_N=cached,
        fresh_N=fresh,
        padding=padding,
        last_rows_N=ends - 1,
        unit_rows_U=np.add.reduceat(fresh, unit_starts),
        unit_sequences_U=np.diff(np.append(unit_starts, len(pieces))),
        draw_sequences_M=np.repeat(np.arange(len(pieces)), num_draws),
        streams_M=np.array([stream for piece in pieces for stream in piece.streams], np.uint64),
        draw_positions_M=np.repeat([piece.position for piece in pieces], num_draws),
        settings_M=Settings.of(
            [piece.settings for piece in pieces for _ in range(len(piece.streams))]
        ),
        top_M=np.repeat([piece.top for piece in pieces], num_draws),
        scoring=Scoring.join([part.shifted(start) for start, part in scored]) if scored else None,
        scored_N=num_scored,
        scored_units_U=np.add.reduceat(num_scored, unit_starts),
    )
