"""From hidden states to what a step finds: logits of the rows that matter, draws, scores.

T rows, N sequences, M draws, D model width, V vocabulary.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from torch import Tensor

from ..adapters.store import WeightsVersion
from ..adapters.targets import Targets
from ..model.base import BaseModel
from ..model.layers import capped
from ..model.uploads import upload
from .bindings import Bindings
from .sample_step import ROW_MULTIPLE, SampleStep
from .sampler import Drawn, RowBounds, draw, uniforms
from .score_rows import score_rows
from .scoring import Scores
from .step_result import StepResult

CHUNK_ROWS = 64  # rows of logits held at a time


class SampleHead:
    """The unembedding with its adapters, and the draws.

    Args:
        model: whose head it is.
        bindings: of the adapters, shared with the layers.
        is_deterministic: rows come in numbers at which bits do not vary.
    """

    def __init__(
        self, model: BaseModel, bindings: Bindings, *, is_deterministic: bool = False
    ) -> None:
        self._model = model
        self._bindings = bindings
        self._is_deterministic = is_deterministic
        self._unembed = len(model.sites) - 1
        self._row_bounds: RowBounds | None = None
        if model.uses_triton:
            from ...kernels.gpu.head import row_bounds

            self._row_bounds = row_bounds

    def read(
        self, hidden_TD: Tensor, step: SampleStep, versions: Sequence[WeightsVersion | None]
    ) -> StepResult:
        """Draw what the step draws, and score the rows that it scores.

        Args:
            hidden_TD: hidden states of the step's rows.
            step: the rows of each sequence and unit, and their draws.
            versions: of the step's units.
        """
        scores = self._score(hidden_TD, step, versions)
        return StepResult(self._draw(hidden_TD, step, versions), scores)

    def _draw(
        self, hidden_TD: Tensor, step: SampleStep, versions: Sequence[WeightsVersion | None]
    ) -> Drawn:
        numbers = uniforms(step.streams_M, step.draw_positions_M)
        count = len(numbers)
        if not count:
            return Drawn.join([])
        rows = self._pad(step.last_rows_N)
        if not np.array_equal(rows, np.arange(len(hidden_TD))):
            hidden_TD = hidden_TD.index_select(0, self._to_device(rows))
        logits_NV = self._logits(hidden_TD, versions, step.unit_sequences_U)
        if count <= CHUNK_ROWS and np.array_equal(step.draw_sequences_M, np.arange(count)):
            return draw(logits_NV[:count], step.settings_M, numbers, step.top_M, self._row_bounds)
        pieces: list[Drawn] = []
        for first in range(0, count, CHUNK_ROWS):
            part = slice(first, first + CHUNK_ROWS)
            chosen = self._to_device(step.draw_sequences_M[part])
            chosen_MV = logits_NV.index_select(0, chosen)
            settings, top_M = step.settings_M.part(part), step.top_M[part]
            pieces.append(draw(chosen_MV, settings, numbers[part], top_M, self._row_bounds))
        return Drawn.join(pieces)

    def _score(
        self, hidden_TD: Tensor, step: SampleStep, versions: Sequence[WeightsVersion | None]
    ) -> Scores:
        if step.scoring is None:
            return Scores.join([])
        num_rows = int(step.scored_N.sum())
        bounds = [*range(0, num_rows, CHUNK_ROWS), num_rows]
        unit_ends = np.cumsum(step.scored_units_U)
        scores: list[Scores] = []
        for (first, last), part in zip(pairwise(bounds), step.scoring.cut(bounds), strict=True):
            counts = np.diff(np.clip(unit_ends, first, last), prepend=first)
            rows = self._to_device(self._pad(part.rows_R))
            logits_TV = self._logits(hidden_TD.index_select(0, rows), versions, counts)
            scores.append(score_rows(logits_TV[: last - first], part, self._row_bounds))
        return Scores.join(scores)

    def _logits(
        self, rows_TD: Tensor, versions: Sequence[WeightsVersion | None], counts: np.ndarray
    ) -> Tensor:
        linears = self._bindings.bind(Targets.UNEMBED, versions, counts)
        (logits_TV,) = linears.group(rows_TD, (self._model.head,), (self._unembed,))
        return capped(logits_TV.float(), self._model.logit_softcap)

    def _pad(self, rows: np.ndarray) -> np.ndarray:
        """Repeat a row until the number of rows is one at which bits do not vary."""
        if not self._is_deterministic:
            return rows
        return np.pad(rows, (0, -len(rows) % ROW_MULTIPLE), mode="edge")

    def _to_device(self, values: np.ndarray) -> Tensor:
        return upload(values, self._model.device)
