"""Losses of a batch that mixes loss functions: per token, and the gradient by its log-probability.

The functions themselves are in `client/losses.py`. Rows that a loss leaves out, because their
weight or advantage is zero, have exactly no loss and no gradient, by selection.
T rows of the batch, C rows of a chunk, N sequences.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..model.uploads import upload
from .soft_targets import SoftTargets

Float32s = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

# Kinds of formulas; those of one kind differ in their bounds or in what their ratio is of.
_CROSS_ENTROPY, _RATIO, _WEIGHTED, _QUADRATIC = range(4)
_KINDS = {
    "cross_entropy": _CROSS_ENTROPY,
    "importance_sampling": _RATIO,
    "ppo": _RATIO,
    "gspo": _RATIO,
    "cispo": _WEIGHTED,
    "dro": _QUADRATIC,
}


@dataclass(frozen=True, slots=True)
class SequenceRatios:
    """The rows of gspo: whole sequences whose tokens share one ratio."""

    is_member_host: Bools  # [T] rows that a ratio is the mean of
    sampling_logprobs_host: Float32s  # [T]
    cu_seqlens: npt.NDArray[np.int32]  # [N + 1] of the whole batch
    is_row_T: Tensor  # bool; all rows of gspo
    log_ratios_T: Tensor  # 0 until they are known

    @classmethod
    def build(
        cls,
        is_row: Bools,
        inputs: Mapping[str, Float32s],
        cu_seqlens: npt.NDArray[np.int32],
        device: torch.device | str,
    ) -> "SequenceRatios":
        """Lay out the rows of gspo; no ratio is known yet."""
        return cls(
            is_member_host=is_row & (inputs["sequence_ratio_mask"] != 0),
            sampling_logprobs_host=inputs["logprobs"],
            cu_seqlens=cu_seqlens,
            is_row_T=_put(is_row, device),
            log_ratios_T=torch.zeros(len(is_row), device=device),
        )


@dataclass(frozen=True, slots=True)
class LossBatch:
    """What the losses of a batch need, row by row."""

    is_scored_host: Bools  # [T] rows whose logprob is asked for
    is_trained_host: Bools  # [T] rows whose loss may have a gradient
    row_counts: npt.NDArray[np.int64]  # [U] rows of each unit
    targets_T: Tensor  # int64
    weights_T: Tensor  # weights or advantages
    sampling_logprobs_T: Tensor
    low_T: Tensor  # bounds of the ratio; 0 and inf where it is not clipped
    high_T: Tensor
    betas_T: Tensor  # of dro
    is_idle_T: Tensor  # bool; rows that have no loss
    kinds_T: Tensor  # int64, the kind of each row's formula
    kinds: frozenset[int]  # that there are in the batch
    sequences: SequenceRatios | None = None  # when some loss is gspo
    soft: SoftTargets | None = None  # rows with several targets; they have target 0 here

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
        cu_seqlens: npt.NDArray[np.int32] | None = None,
        num_targets: npt.NDArray[np.int32] | None = None,
        soft: SoftTargets | None = None,
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
            cu_seqlens: bounds of the sequences, [N + 1]; needed for gspo.
            num_targets: of each row, [T]; None: one. Rows without targets are not scored.
            soft: rows with more than one; their weight is theirs, whatever the inputs hold.
        """
        counts = np.asarray(row_counts, np.int64)
        assert counts.sum() == len(targets), "units and rows differ"
        blank = np.zeros(len(targets), np.float32)
        sampling_logprobs = inputs.get("logprobs", blank)
        kinds = [_KINDS.get(name or "", _CROSS_ENTROPY) for name in loss_fns]
        is_policy = np.repeat([kind != _CROSS_ENTROPY for kind in kinds], counts)
        is_scored = np.repeat([name is not None for name in loss_fns], counts)
        if num_targets is not None:
            is_scored &= num_targets > 0
        weights = np.where(is_policy, inputs.get("advantages", blank), inputs.get("weights", blank))
        weights = np.where(is_scored, weights, np.float32(0))
        if soft is not None:  # the weights are inside the gradient by the logits
            weights[soft.rows] = soft.is_trained
        betas = _option("beta", 0.0, configs, counts)
        is_idle = weights == 0
        is_idle &= ~is_policy | (sampling_logprobs == 0) | (betas == 0)
        low = _option("clip_low_threshold", 0.0, configs, counts)
        high = _option("clip_high_threshold", np.inf, configs, counts)
        is_sequence = np.repeat([name == "gspo" for name in loss_fns], counts)
        sequences = None
        if is_sequence.any():
            assert cu_seqlens is not None, "gspo needs the bounds of the sequences"
            low = np.where(is_sequence, inputs["clip_low_threshold"], low)
            high = np.where(is_sequence, inputs["clip_high_threshold"], high)
            sequences = SequenceRatios.build(is_sequence, inputs, cu_seqlens, device)
        return cls(
            is_scored_host=is_scored,
            is_trained_host=~is_idle,
            row_counts=counts,
            targets_T=_put(targets, device),
            weights_T=_put(weights, device),
            sampling_logprobs_T=_put(sampling_logprobs, device),
            low_T=_put(low, device),
            high_T=_put(high, device),
            betas_T=_put(betas, device),
            is_idle_T=_put(is_idle, device),
            kinds_T=_put(np.repeat(kinds, counts), device),
            kinds=frozenset(kinds),
            sequences=sequences,
            soft=soft,
        )

    def with_sequence_ratios(self, logprobs_T: Tensor) -> "LossBatch":
        """The same batch with the ratios of gspo, from its rows' log-probabilities; synchronises."""
        sequences = self.sequences
        if sequences is None:
            return self
        log_ratios = sequence_log_ratios(
            logprobs_T.cpu().numpy(),
            sequences.sampling_logprobs_host,
            sequences.is_member_host,
            sequences.cu_seqlens,
        )
        log_ratios_T = upload(log_ratios.astype(np.float32), logprobs_T.device)
        return replace(self, sequences=replace(sequences, log_ratios_T=log_ratios_T))


def _option(
    key: str,
    default: float,
    configs: Sequence[Mapping[str, float]],
    counts: npt.NDArray[np.int64],
) -> Float32s:
    """What each row's unit has of an option."""
    return np.repeat(np.array([config.get(key, default) for config in configs], np.float32), counts)


def _put(column: np.ndarray, device: torch.device | str) -> Tensor:
    return upload(np.ascontiguousarray(column), device)


def sequence_log_ratios(
    logprobs: Float32s,
    sampling_logprobs: Float32s,
    is_member: Bools,
    cu_seqlens: npt.NDArray[np.int32],
) -> npt.NDArray[np.float64]:
    """Mean difference of the log-probabilities of each sequence's members, for all its rows, [T].

    A sequence without members has 0. Sums depend on nothing but the sequence itself.
    """
    starts, lengths = cu_seqlens[:-1], np.diff(cu_seqlens)
    differences = logprobs.astype(np.float64) - sampling_logprobs
    sums = np.add.reduceat(np.where(is_member, differences, 0), starts)
    counts = np.add.reduceat(is_member.astype(np.int64), starts)
    return np.repeat(sums / np.maximum(counts, 1), lengths)


def coefficients(losses: LossBatch, rows_C: Tensor, logprobs_C: Tensor) -> tuple[Tensor, Tensor]:
    """Loss of each row and its derivative by the row's log-probability.

    With lp the log-probability, w the weight, A the advantage, q the sampler's log-probability,
    r = exp(lp - q) or the ratio of the sequence, c = clip(r, low, high):

        cross_entropy               -w * lp                               -w
        importance_sampling         -r * A                                -r * A
        ppo, gspo                   -min(r * A, c * A)                    -r * A, or 0 where clipped
        cispo                       -c * lp * A                           -c * A
        dro                         -(lp * A - beta / 2 * (lp - q)**2)    -A + beta * (lp - q)

    Args:
        losses: of the batch; with gspo, after `with_sequence_ratios`.
        rows_C: which rows of the batch, int64.
        logprobs_C: their log-probabilities under the weights in training, float32.

    Returns:
        Two float32 tensors [C]; exactly 0 where a row is idle, whatever the log-probability. Rows
        with several targets have slope -1, and a loss that says nothing.
    """
    weights_C = losses.weights_T.index_select(0, rows_C)
    losses_C = -weights_C * logprobs_C
    slopes_C = -weights_C
    for kind, formula in _FORMULAS.items():
        if kind in losses.kinds:
            is_kind_C = losses.kinds_T.index_select(0, rows_C) == kind
            own_losses_C, own_slopes_C = formula(losses, rows_C, logprobs_C, weights_C)
            losses_C = torch.where(is_kind_C, own_losses_C, losses_C)
            slopes_C = torch.where(is_kind_C, own_slopes_C, slopes_C)
    is_idle_C = losses.is_idle_T.index_select(0, rows_C)
    return losses_C.masked_fill(is_idle_C, 0), slopes_C.masked_fill(is_idle_C, 0)


def _ratio(
    losses: LossBatch, rows_C: Tensor, logprobs_C: Tensor, weights_C: Tensor
) -> tuple[Tensor, Tensor]:
    log_ratios_C = logprobs_C - losses.sampling_logprobs_T.index_select(0, rows_C)
    if losses.sequences is not None:
        is_sequence_C = losses.sequences.is_row_T.index_select(0, rows_C)
        shared_C = losses.sequences.log_ratios_T.index_select(0, rows_C)
        log_ratios_C = torch.where(is_sequence_C, shared_C, log_ratios_C)
    low_C, high_C = losses.low_T.index_select(0, rows_C), losses.high_T.index_select(0, rows_C)
    ratios_C = log_ratios_C.exp()
    is_clipped_C = torch.where(weights_C > 0, ratios_C > high_C, ratios_C < low_C)
    bounded_C = torch.where(is_clipped_C, ratios_C.clamp(low_C, high_C), ratios_C)
    return -bounded_C * weights_C, (-ratios_C * weights_C).masked_fill(is_clipped_C, 0)


def _weighted(
    losses: LossBatch, rows_C: Tensor, logprobs_C: Tensor, weights_C: Tensor
) -> tuple[Tensor, Tensor]:
    low_C, high_C = losses.low_T.index_select(0, rows_C), losses.high_T.index_select(0, rows_C)
    ratios_C = (logprobs_C - losses.sampling_logprobs_T.index_select(0, rows_C)).exp()
    slopes_C = -ratios_C.clamp(low_C, high_C) * weights_C
    return slopes_C * logprobs_C, slopes_C


def _quadratic(
    losses: LossBatch, rows_C: Tensor, logprobs_C: Tensor, weights_C: Tensor
) -> tuple[Tensor, Tensor]:
    differences_C = logprobs_C - losses.sampling_logprobs_T.index_select(0, rows_C)
    pulls_C = losses.betas_T.index_select(0, rows_C) * differences_C
    return pulls_C * differences_C / 2 - logprobs_C * weights_C, pulls_C - weights_C


_FORMULAS = {_RATIO: _ratio, _WEIGHTED: _weighted, _QUADRATIC: _quadratic}
