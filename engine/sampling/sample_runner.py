"""Carry out sample steps over a paged cache. Changes nothing but pages of the cache."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..adapters.store import AdapterStore, WeightsVersion
from ..adapters.targets import LAYERS
from ..model.base import BaseModel
from ..model.uploads import upload
from .bindings import Bindings
from .kv_cache import KVCache
from .open_attention import paged_attentions
from .sample_head import SampleHead
from .sample_step import SampleStep
from .step_result import StepResult


class SampleRunner:
    """The model with a paged cache and the adapters of many versions."""

    def __init__(
        self, model: BaseModel, store: AdapterStore, cache: KVCache, *, is_deterministic: bool
    ) -> None:
        self._model = model
        self._attentions = paged_attentions(model, cache, is_deterministic=is_deterministic)
        self._bindings = Bindings(store, is_deterministic=is_deterministic)
        self._head = SampleHead(model, self._bindings, is_deterministic=is_deterministic)

    @torch.no_grad()
    def run(self, step: SampleStep, versions: Sequence[WeightsVersion | None]) -> StepResult:
        """Compute the rows of a step, draw, and score the prompts that asked for it.

        The same step gives the same result when it is repeated, whole or in parts (up to rounding;
        bitwise in deterministic mode).
        """
        attention = self._attentions(step.tables_NP, step.cached_N, step.fresh_N, step.padding)
        hidden_TD = self._model.forward(
            self._to_device(step.tokens_T),
            self._to_device(step.positions_T),
            attention,
            self._bindings.bind(LAYERS, versions, step.unit_rows_U),
        )
        return self._head.read(hidden_TD, step, versions)

    def _to_device(self, values: np.ndarray) -> Tensor:
        return upload(values, self._model.device)
