"""What is wanted of the next-token distributions after rows of prompts, and what was found. Pure.

R rows, ascending, that something is wanted of; C cells, which are tokens to be scored, E entries of
likeliest tokens, A alternatives to be drawn, all in the order of the rows.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise

import numpy as np

_ALTERNATIVES_BITS = 16  # numbers of a stream between a row's first alternative and the next row's


@dataclass(frozen=True, slots=True, eq=False)
class Scoring:
    """What is wanted, row by row."""

    rows_R: np.ndarray  # int64
    cells_R: np.ndarray  # int64, how many
    tokens_C: np.ndarray  # int64, of the cells
    top_R: np.ndarray  # int64, how many of the likeliest tokens
    alternatives_R: np.ndarray  # int64, how many
    temperature_R: np.ndarray  # float64, of the alternatives
    streams_R: np.ndarray  # uint64, which the alternatives are drawn from
    positions_R: np.ndarray  # int64, of the row in its prompt

    @classmethod
    def join(cls, parts: Sequence["Scoring"]) -> "Scoring":
        """One after the other; at least one."""
        if len(parts) == 1:
            return parts[0]
        return cls(*_concatenate(parts))

    @property
    def num_rows(self) -> int:
        return len(self.rows_R)

    @property
    def num_entries(self) -> int:
        return int(self.top_R.sum())

    @property
    def num_alternatives(self) -> int:
        return int(self.alternatives_R.sum())

    def between(self, first: int, last: int) -> "Scoring | None":
        """What is wanted of the rows first .. last - 1, counted from `first`; None if nothing is."""
        bounds = np.searchsorted(self.rows_R, (first, last)).tolist()
        if bounds[0] == bounds[1]:
            return None
        (part,) = self.cut(bounds)
        return part.shifted(-first)

    def shifted(self, offset: int) -> "Scoring":
        """The same of the rows that lie `offset` further."""
        return replace(self, rows_R=self.rows_R + offset)

    def cut(self, bounds: Sequence[int]) -> "list[Scoring]":
        """The pieces between bounds, which count the wanted rows."""
        ends_C = np.concatenate(([0], np.cumsum(self.cells_R)))[list(bounds)].tolist()
        return [
            self._take(slice(*rows), slice(*cells))
            for rows, cells in zip(pairwise(bounds), pairwise(ends_C), strict=True)
        ]

    def without_idle_rows(self) -> "Scoring":
        """The same without rows of which nothing is wanted."""
        is_idle = (self.cells_R == 0) & (self.top_R == 0) & (self.alternatives_R == 0)
        return self._take(np.flatnonzero(~is_idle), slice(None))

    def alternative_rows(self) -> np.ndarray:
        """Which of the R rows each alternative belongs to, [A]."""
        return np.repeat(np.arange(self.num_rows), self.alternatives_R)

    def alternative_places(self) -> tuple[np.ndarray, np.ndarray]:
        """The stream of each alternative and the number that it takes from it, [A] each.

        Both depend on the request, the row's position in the prompt and the alternative's index.
        """
        rows_A = self.alternative_rows()
        starts_R = np.cumsum(self.alternatives_R) - self.alternatives_R
        indices_A = np.arange(len(rows_A)) - starts_R[rows_A]
        return self.streams_R[rows_A], (self.positions_R[rows_A] << _ALTERNATIVES_BITS) + indices_A

    def _take(self, rows: slice | np.ndarray, cells: slice) -> "Scoring":
        return Scoring(
            rows_R=self.rows_R[rows],
            cells_R=self.cells_R[rows],
            tokens_C=self.tokens_C[cells],
            top_R=self.top_R[rows],
            alternatives_R=self.alternatives_R[rows],
            temperature_R=self.temperature_R[rows],
            streams_R=self.streams_R[rows],
            positions_R=self.positions_R[rows],
        )


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """What was found; log-probabilities of prompts are at temperature 1."""

    logprobs_C: np.ndarray  # float32
    top_tokens_E: np.ndarray  # int32
    top_logprobs_E: np.ndarray  # float32
    alternatives_A: np.ndarray  # int32
    alternative_logprobs_A: np.ndarray  # float32

    @classmethod
    def join(cls, parts: Sequence["Scores"]) -> "Scores":
        """One after the other; of no parts there is nothing."""
        if not parts:
            floats, ints = np.empty(0, np.float32), np.empty(0, np.int32)
            return cls(floats, ints, floats, ints, floats)
        return parts[0] if len(parts) == 1 else cls(*_concatenate(parts))

    @property
    def is_finite(self) -> bool:
        """Whether all of it can be told; if not, the logits were not finite."""
        found = (self.logprobs_C, self.top_logprobs_E, self.alternative_logprobs_A)
        return all(bool(np.isfinite(values).all()) for values in found)

    def deal(self, wanted: Iterable[Scoring | None]) -> "list[Scores | None]":
        """The scores of several scorings that were joined; None for those that want nothing."""
        dealt: list[Scores | None] = []
        cells = entries = alternatives = 0
        for scoring in wanted:
            if scoring is None:
                dealt.append(None)
                continue
            of_cells = slice(cells, cells + len(scoring.tokens_C))
            of_entries = slice(entries, entries + scoring.num_entries)
            of_draws = slice(alternatives, alternatives + scoring.num_alternatives)
            cells, entries, alternatives = of_cells.stop, of_entries.stop, of_draws.stop
            dealt.append(
                Scores(
                    self.logprobs_C[of_cells],
                    self.top_tokens_E[of_entries],
                    self.top_logprobs_E[of_entries],
                    self.alternatives_A[of_draws],
                    self.alternative_logprobs_A[of_draws],
                )
            )
        return dealt


def _concatenate(parts: Sequence[Scoring] | Sequence[Scores]) -> list[np.ndarray]:
    return [
        np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(parts[0])
    ]
