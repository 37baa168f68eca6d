"""The language-model head, whatever it is computed by: log-probabilities, losses, their gradient.

Three steps for each chunk of rows: logits and log-probabilities; coefficients of the losses;
gradients. The logits of a batch are never in memory at once. Rows without a loss have no backward,
by selection. Training is at temperature 1.
T rows of the batch, C chosen rows, D model width, M targets of rows with several.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..model.base import BaseModel
from ..model.linear import BaseLinear
from .binding import BoundLinears
from .losses import LossBatch, coefficients

ROW_TILE = 16  # deterministic chunks have a multiple of so many rows


@dataclass(frozen=True, slots=True)
class HeadResult:
    """Outputs of the head for a batch, float32; rows that nobody asked for are 0.

    So are rows with several targets: what they have is `soft_logprobs_M`, and their loss follows
    from that, see `SoftTargets.losses`.
    """

    logprobs_T: Tensor
    losses_T: Tensor
    soft_logprobs_M: Tensor  # of the targets of those rows, in the order of `LossBatch.soft`
    dhidden_TD: Tensor  # gradient of the sum of all losses; [0, D] after a forward pass alone


class LossHead(ABC):
    """Applies the unembedding with its adapters and the losses.

    Args:
        base: the frozen unembedding, [V, D].
        site: its index among the sites.
        chunk_rows: rows of logits held at a time, a multiple of 16.
        softcap: logits are bent to softcap * tanh(logits / softcap); 0 is off.
    """

    def __init__(
        self, base: BaseLinear, site: int, *, chunk_rows: int = 256, softcap: float = 0.0
    ) -> None:
        if chunk_rows <= 0 or chunk_rows % ROW_TILE:
            raise ValueError(f"chunk_rows is {chunk_rows}, not a multiple of {ROW_TILE}")
        self.base = base
        self.site = site
        self.chunk_rows = chunk_rows
        self.softcap = softcap

    @classmethod
    def of(cls, model: BaseModel, *, chunk_rows: int = 256) -> Self:
        """The head of a model."""
        site = len(model.sites) - 1
        return cls(model.head, site, chunk_rows=chunk_rows, softcap=model.logit_softcap)

    @torch.no_grad()
    def forward(self, hidden_TD: Tensor, losses: LossBatch, linears: BoundLinears) -> HeadResult:
        """Log-probabilities of the targets, and losses."""
        result = _blank(hidden_TD, losses, hidden_TD[:0])
        self._run(hidden_TD, losses, linears, result, losses.is_scored_host)
        if losses.sequences is not None:
            rows_C = losses.sequences.is_row_T.nonzero().squeeze(1)
            losses = losses.with_sequence_ratios(result.logprobs_T)
            logprobs_C = result.logprobs_T.index_select(0, rows_C)
            losses_C, _ = coefficients(losses, rows_C, logprobs_C)
            result.losses_T.index_copy_(0, rows_C, losses_C)
        return result

    @torch.no_grad()
    def forward_backward(
        self, hidden_TD: Tensor, losses: LossBatch, linears: BoundLinears
    ) -> HeadResult:
        """The same, and the gradient of the sum of the losses by the hidden states.

        Rows whose coefficients need the log-probabilities of a whole sequence take two passes:
        without gradient first, and with it once all of them are known. Gradients of adapters on the
        unembedding are in the runs' stages after `linears.flush`.
        """
        result = _blank(hidden_TD, losses, torch.zeros_like(hidden_TD))
        is_trained = losses.is_scored_host & losses.is_trained_host
        is_first = losses.is_scored_host & ~is_trained
        if losses.sequences is not None:
            is_first |= losses.sequences.is_member_host
        self._run(hidden_TD, losses, linears, result, is_first)
        losses = losses.with_sequence_ratios(result.logprobs_T)
        self._run(hidden_TD, losses, linears, result, is_trained, is_trained=True)
        return result

    @abstractmethod
    def _run(
        self,
        hidden_TD: Tensor,
        losses: LossBatch,
        linears: BoundLinears,
        result: HeadResult,
        is_chosen: npt.NDArray[np.bool_],
        is_trained: bool = False,
    ) -> None:
        """Pass the chosen rows through the head, with backward or without."""


def _blank(hidden_TD: Tensor, losses: LossBatch, dhidden_TD: Tensor) -> HeadResult:
    logprobs_T = torch.zeros(hidden_TD.shape[0], device=hidden_TD.device)
    num_targets = 0 if losses.soft is None else len(losses.soft.targets)
    soft_logprobs_M = logprobs_T.new_zeros(num_targets)
    return HeadResult(logprobs_T, torch.zeros_like(logprobs_T), soft_logprobs_M, dhidden_TD)
