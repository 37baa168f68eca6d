"""From hidden states to what a step finds: logits of the rows that matter, draws, scores.

T rows, N sequences, M draws, R scored rows, D model width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...kernels.head import target_logprobs_
from ..adapters.store import WeightsVersion
from ..model.base import BaseModel
from ..model.layers import capped
from .bindings import Bindings
from .sample_step import ROW_MULTIPLE, SampleStep
from .sampler import Drawn, draw, uniforms

CHUNK_ROWS = 64  # rows of logits held at a time


@dataclass(frozen=True, slots=True, eq=False)
class StepResult:
    """What a step found; a step that raised has changed nothing that its repetition reads."""

    tokens_M: np.ndarray  # int64
    logprobs_M: np.ndarray  # float32
    scores_R: np.ndarray  # float32, logprob of each scored row's target at temperature 1


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

    def read(
        self, hidden_TD: Tensor, step: SampleStep, versions: Sequence[WeightsVersion | None]
    ) -> StepResult:
        """Draw what the step draws, and score the rows that it scores.

        Args:
            hidden_TD: hidden states of the step's rows.
            step: the rows of each sequence and unit, and their draws.
            versions: of the step's units.
        """
        scores_R = self._score(hidden_TD, step, versions)
        drawn = self._draw(hidden_TD, step, versions)
        return StepResult(drawn.tokens, drawn.logprobs, scores_R)

    def _draw(
        self, hidden_TD: Tensor, step: SampleStep, versions: Sequence[WeightsVersion | None]
    ) -> Drawn:
        numbers = uniforms(step.streams_M, step.draw_positions_M)
        count = len(numbers)
        if not count:
            return Drawn(np.empty(0, np.int64), np.empty(0, np.float32))
        rows = self._pad(step.last_rows_N)
        if not np.array_equal(rows, np.arange(len(hidden_TD))):
            hidden_TD = hidden_TD.index_select(0, self._to_device(rows))
        logits_NV = self._logits(hidden_TD, versions, step.unit_sequences_U)
        if count <= CHUNK_ROWS and np.array_equal(step.draw_sequences_M, np.arange(count)):
            return draw(logits_NV[:count], step.settings_M, numbers)
        pieces: list[Drawn] = []
        for first in range(0, count, CHUNK_ROWS):
            part = slice(first, first + CHUNK_ROWS)
            chosen = self._to_device(step.draw_sequences_M[part])
            pieces.append(
                draw(logits_NV.index_select(0, chosen), step.settings_M.part(part), numbers[part])
            )
        return Drawn(
            np.concatenate([piece.tokens for piece in pieces]),
            np.concatenate([piece.logprobs for piece in pieces]),
        )

    def _score(
        self, hidden_TD: Tensor, step: SampleStep, versions: Sequence[WeightsVersion | None]
    ) -> np.ndarray:
        scores = np.empty(len(step.scored_rows_R), np.float32)
        unit_ends = np.cumsum(step.scored_units_U)
        for first in range(0, len(scores), CHUNK_ROWS):
            last = min(first + CHUNK_ROWS, len(scores))
            counts = np.diff(np.clip(unit_ends, first, last), prepend=first)
            rows = self._to_device(self._pad(step.scored_rows_R[first:last]))
            logits_TV = self._logits(hidden_TD.index_select(0, rows), versions, counts)
            targets = self._to_device(step.scored_targets_R[first:last])
            scores[first:last] = target_logprobs_(logits_TV[: last - first], targets).cpu().numpy()
        return scores

    def _logits(
        self, rows_TD: Tensor, versions: Sequence[WeightsVersion | None], counts: np.ndarray
    ) -> Tensor:
        linears = self._bindings.bind("head", versions, counts)
        (logits_TV,) = linears.group(rows_TD, (self._model.head,), (self._unembed,))
        return capped(logits_TV.float(), self._model.logit_softcap)

    def _pad(self, rows: np.ndarray) -> np.ndarray:
        """Repeat a row until the number of rows is one at which bits do not vary."""
        if not self._is_deterministic:
            return rows
        return np.pad(rows, (0, -len(rows) % ROW_MULTIPLE), mode="edge")

    def _to_device(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self._model.device)
