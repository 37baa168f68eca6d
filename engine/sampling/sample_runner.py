"""Carry out sample steps: model, adapters, head, draw. Changes nothing but pages of the cache.

T rows, N sequences, M draws, D model width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...kernels.head import target_logprobs_
from ...kernels.workspace import Workspace
from ..adapters.lora import LoraLinears
from ..adapters.store import AdapterStore, WeightsVersion
from ..model.base import BaseModel
from .kv_cache import KVCache, PagedAttention
from .sample_step import ROW_MULTIPLE, SampleStep
from .sampler import Drawn, draw, uniforms

CHUNK_ROWS = 64  # rows of logits held at a time


@dataclass(frozen=True, slots=True, eq=False)
class StepResult:
    """What a step found; a step that raised has changed nothing that its repetition reads."""

    tokens_M: np.ndarray  # int64
    logprobs_M: np.ndarray  # float32
    scores_R: np.ndarray  # float32, logprob of each scored row's target at temperature 1


class SampleRunner:
    """The model with a paged cache and the adapters of many versions."""

    def __init__(
        self, model: BaseModel, store: AdapterStore, cache: KVCache, *, is_deterministic: bool
    ) -> None:
        self._model = model
        self._store = store
        self._cache = cache
        self._is_deterministic = is_deterministic
        self._workspace = Workspace(store.device)
        self._unembed = len(model.sites) - 1
        self._linears: dict[str, tuple[tuple[object, ...], LoraLinears]] = {}

    @torch.no_grad()
    def run(self, step: SampleStep, versions: Sequence[WeightsVersion | None]) -> StepResult:
        """Compute the rows of a step, draw, and score the prompts that asked for it.

        The same step gives the same result when it is repeated, whole or in parts (up to rounding;
        bitwise in deterministic mode).
        """
        attention = PagedAttention(
            self._cache, step.tables_NP, step.cached_N, step.fresh_N, step.padding
        )
        hidden_TD = self._model.forward(
            self._to_device(step.tokens_T),
            self._to_device(step.positions_T),
            attention,
            self._bind("layers", versions, step.unit_rows_U),
        )
        scores = self._score(hidden_TD, step, versions)
        if len(step.last_rows_N) < len(step.tokens_T):
            hidden_TD = hidden_TD.index_select(0, self._to_device(self._pad(step.last_rows_N)))
        logits_NV = self._logits(hidden_TD, versions, step.unit_sequences_U)
        drawn = self._draw(logits_NV, step)
        return StepResult(drawn.tokens, drawn.logprobs, scores)

    def _draw(self, logits_NV: Tensor, step: SampleStep) -> Drawn:
        numbers = uniforms(step.streams_M, step.draw_positions_M)
        count = len(numbers)
        if count <= CHUNK_ROWS and np.array_equal(step.draw_sequences_M, np.arange(count)):
            return draw(logits_NV[:count], step.settings_M, numbers)
        pieces: list[Drawn] = []
        for first in range(0, count, CHUNK_ROWS):
            part = slice(first, first + CHUNK_ROWS)
            rows = self._to_device(step.draw_sequences_M[part])
            pieces.append(
                draw(logits_NV.index_select(0, rows), step.settings_M.part(part), numbers[part])
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
        linears = self._bind("head", versions, counts)
        (logits_TV,) = linears.group(rows_TD, (self._model.head,), (self._unembed,))
        return logits_TV.float()

    def _bind(
        self, place: str, versions: Sequence[WeightsVersion | None], counts: np.ndarray
    ) -> LoraLinears:
        """The linears of this composition, kept until the next other one in this place."""
        ids = [0 if version is None else version.id for version in versions]
        key = (*ids, *counts.tolist())
        kept = self._linears.get(place)
        if kept is not None and kept[0] == key:
            return kept[1]
        self._linears.pop(place, None)
        linears = LoraLinears(
            self._store,
            versions,
            [None] * len(versions),
            counts,
            is_deterministic=self._is_deterministic,
            workspace=self._workspace,
        )
        self._linears[place] = (key, linears)
        return linears

    def _pad(self, rows: np.ndarray) -> np.ndarray:
        """Repeat a row until the number of rows is one at which bits do not vary."""
        if not self._is_deterministic:
            return rows
        return np.pad(rows, (0, -len(rows) % ROW_MULTIPLE), mode="edge")

    def _to_device(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self._store.device)
