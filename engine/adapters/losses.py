"""Losses of a batch that mixes loss functions: per token, and the gradient by its log-probability.

The functions themselves are in `client/losses.py`. Rows with weight or advantage zero have exactly
no loss and no gradient, by selection. T rows of the batch, C rows of a chunk.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Float32s = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

_WEIGHTS = {"cross_entropy": "weights", "importance_sampling": "advantages", "ppo": "advantages"}


@dataclass(frozen=True, slots=True)
class LossBatch:
    """What the losses of a batch need, row by row."""

    is_scored_host: Bools  # [T] rows whose logprob is asked for
    is_trained_host: Bools  # [T] rows whose loss may have a gradient: weight not 0
    row_counts: npt.NDArray[np.int64]  # [U] rows of each unit
    targets_T: Tensor  # int64
    weights_T: Tensor  # weights or advantages
    sampling_logprobs_T: Tensor
    low_T: Tensor  # bounds of the ratio; 0 and inf where it is not clipped
    high_T: Tensor
    is_policy_T: Tensor  # bool; false is cross-entropy
    has_policy: bool  # whether any row is of that kind

    @classmethod
    def build(
        cls,
        *,
        loss_fns: Sequence[str | None],
        configs: Sequence[Mapping[str, float]],
        row_counts: Sequence[int] | npt.NDArray[np.int32],
        targets: npt.NDArray[np.int64],
        inputs: Mapping[str, Float32s],
        device: torch.device | str,
    ) -> "LossBatch":
        """Lay out the losses of a batch.

        Args:
            loss_fns: loss function of each unit, by name; None for units that nobody asked for.
            configs: its configuration, all keys filled in.
            row_counts: rows of each unit.
            targets: target token of each row, [T].
            inputs: the loss functions' other inputs by name, [T]; where a unit's loss has no such
                input the value is not read.
            device: where the tensors go.
        """
        counts = np.asarray(row_counts, np.int64)
        blank = np.zeros(len(targets), np.float32)
        weights = blank.copy()
        for name, source in _WEIGHTS.items():
            has = np.repeat([loss_fn == name for loss_fn in loss_fns], counts)
            if has.any():
                np.copyto(weights, inputs[source], where=has)
        is_policy = np.array([_WEIGHTS.get(fn or "") == "advantages" for fn in loss_fns], bool)
        low = np.array([config.get("clip_low_threshold", 0.0) for config in configs], np.float32)
        high = np.array(
            [config.get("clip_high_threshold", np.inf) for config in configs], np.float32
        )
        assert counts.sum() == len(targets), "units and rows differ"

        def put(column: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(column)).to(device)

        return cls(
            is_scored_host=np.repeat([loss_fn is not None for loss_fn in loss_fns], counts),
            is_trained_host=weights != 0,
            row_counts=counts,
            targets_T=put(targets),
            weights_T=put(weights),
            sampling_logprobs_T=put(inputs.get("logprobs", blank)),
            low_T=put(np.repeat(low, counts)),
            high_T=put(np.repeat(high, counts)),
            is_policy_T=put(np.repeat(is_policy, counts)),
            has_policy=bool(is_policy.any()),
        )


def coefficients(losses: LossBatch, rows_C: Tensor, logprobs_C: Tensor) -> tuple[Tensor, Tensor]:
    """Loss of each row and its derivative by the row's log-probability.

    With lp the log-probability, w the weight or advantage A, r = exp(lp - sampling logprob):

        cross_entropy          -w * lp                              -w
        importance_sampling    -r * A                               -r * A
        ppo                    -min(r * A, clip(r, low, high) * A)  -r * A, or 0 where clipped

    Args:
        losses: of the batch.
        rows_C: which rows of the batch, int64.
        logprobs_C: their log-probabilities under the weights in training, float32.

    Returns:
        Two float32 tensors [C]; exactly 0 where the weight is 0, whatever the log-probability.
    """
    weights_C = losses.weights_T.index_select(0, rows_C)
    losses_C = -weights_C * logprobs_C
    slopes_C = -weights_C
    if losses.has_policy:
        is_policy_C = losses.is_policy_T.index_select(0, rows_C)
        low_C = losses.low_T.index_select(0, rows_C)
        high_C = losses.high_T.index_select(0, rows_C)
        ratios_C = (logprobs_C - losses.sampling_logprobs_T.index_select(0, rows_C)).exp()
        is_clipped_C = torch.where(weights_C > 0, ratios_C > high_C, ratios_C < low_C)
        bounded_C = torch.where(is_clipped_C, ratios_C.clamp(low_C, high_C), ratios_C)
        policy_slopes_C = (-ratios_C * weights_C).masked_fill(is_clipped_C, 0)
        losses_C = torch.where(is_policy_C, -bounded_C * weights_C, losses_C)
        slopes_C = torch.where(is_policy_C, policy_slopes_C, slopes_C)
    is_idle_C = weights_C == 0
    return losses_C.masked_fill(is_idle_C, 0), slopes_C.masked_fill(is_idle_C, 0)
