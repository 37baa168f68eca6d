"""Rows of cross-entropy that have several weighted targets, laid out once on the host.

    loss = -sum_k w_k log p(t_k)        gradient by the logits: total * p - sum_k w_k one_hot(t_k)

with total the sum of the w_k. Rows with one target are the usual ones and do not appear here.
Q such rows, M targets of them, P pulls: the targets of a row that have a weight, each once.
T rows of a batch or command, C places of a chunk.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Int64s = npt.NDArray[np.int64]
Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SoftTargets:
    """The targets of some rows, row after row."""

    rows: Int64s  # [Q] rising
    starts: Int64s  # [Q + 1] of each row's targets
    targets: Int64s  # [M]
    weights: Float32s  # [M]
    totals: Float32s  # [Q] sum of each row's weights
    pull_starts: Int64s  # [Q + 1] of each row's pulls
    pull_targets: Int64s  # [P] rising within a row
    pull_weights: Float32s  # [P]

    @classmethod
    def build(
        cls, counts: npt.NDArray[np.int32], targets: npt.NDArray[np.int32], weights: Float32s
    ) -> "SoftTargets":
        """Take the rows with several targets out of those of a command.

        Args:
            counts: targets of each row, [T].
            targets: of all rows, row after row.
            weights: of the targets.
        """
        rows = np.flatnonzero(counts > 1)
        is_soft = np.repeat(counts > 1, counts)
        own_targets, own_weights = targets[is_soft].astype(np.int64), weights[is_soft]
        starts = _starts(counts[rows])
        owners = np.repeat(np.arange(len(rows)), counts[rows])
        totals = np.bincount(owners, own_weights, len(rows))
        order = np.lexsort((own_targets, owners))
        sorted_owners, sorted_targets = owners[order], own_targets[order]
        is_new = np.ones(len(order), bool)
        is_new[1:] = (np.diff(sorted_owners) != 0) | (np.diff(sorted_targets) != 0)
        groups = np.cumsum(is_new) - 1
        sums = np.bincount(groups, own_weights[order], int(is_new.sum()))
        is_pull = sums != 0
        pull_counts = np.bincount(sorted_owners[is_new][is_pull], minlength=len(rows))
        return cls(
            rows=rows,
            starts=starts,
            targets=own_targets,
            weights=own_weights,
            totals=_narrow(totals),
            pull_starts=_starts(pull_counts),
            pull_targets=sorted_targets[is_new][is_pull],
            pull_weights=_narrow(sums[is_pull]),
        )

    @property
    def is_trained(self) -> npt.NDArray[np.bool_]:
        """Rows that have a gradient, [Q]."""
        return np.asarray((np.diff(self.pull_starts) > 0) | (self.totals != 0))

    def losses(self, logprobs: Float32s) -> Float64s:
        """The loss of each row, [Q], from the log-probabilities of the targets, [M]."""
        if not len(self.rows):
            return np.zeros(0)
        has_weight = self.weights != 0
        terms = np.where(has_weight, -self.weights.astype(np.float64) * logprobs, 0)
        return np.add.reduceat(terms, self.starts[:-1])

    def part(self, first: int, last: int) -> "SoftTargets":
        """Those of rows first..last - 1, which are numbered from 0."""
        low, high = np.searchsorted(self.rows, (first, last))
        targets = slice(self.starts[low], self.starts[high])
        pulls = slice(self.pull_starts[low], self.pull_starts[high])
        return SoftTargets(
            rows=self.rows[low:high] - first,
            starts=self.starts[low : high + 1] - targets.start,
            targets=self.targets[targets],
            weights=self.weights[targets],
            totals=self.totals[low:high],
            pull_starts=self.pull_starts[low : high + 1] - pulls.start,
            pull_targets=self.pull_targets[pulls],
            pull_weights=self.pull_weights[pulls],
        )


def join(pieces: Sequence[tuple[int, SoftTargets]]) -> SoftTargets:
    """Those of a batch: each piece's rows come after so many others, which rise."""
    parts = [piece for _, piece in pieces]
    return SoftTargets(
        rows=np.concatenate([piece.rows + offset for offset, piece in pieces]),
        starts=_starts(np.concatenate([np.diff(part.starts) for part in parts])),
        targets=np.concatenate([part.targets for part in parts]),
        weights=np.concatenate([part.weights for part in parts]),
        totals=np.concatenate([part.totals for part in parts]),
        pull_starts=_starts(np.concatenate([np.diff(part.pull_starts) for part in parts])),
        pull_targets=np.concatenate([part.pull_targets for part in parts]),
        pull_weights=np.concatenate([part.pull_weights for part in parts]),
    )


@dataclass(frozen=True, slots=True)
class SoftChunk:
    """The rows with several targets of one chunk of the head, on the device."""

    reals_Q: Tensor  # which of the chunk's rows, padding aside
    target_places_M: Tensor  # place in the chunk of each target's row
    targets_M: Tensor
    outputs_M: Tensor  # index of each target in the batch
    one_hots_C: Tensor  # -1 for places with one target, 0 for the others
    totals_C: Tensor  # 1 for places with one target
    pull_places_P: Tensor
    pull_targets_P: Tensor
    pull_weights_P: Tensor

    @classmethod
    def build(
        cls,
        soft: SoftTargets,
        rows: Int64s,
        places: Int64s,
        num_places: int,
        device: torch.device,
    ) -> "SoftChunk | None":
        """Pick the rows of a chunk; None when all have one target.

        Args:
            soft: of the batch.
            rows: rows of the batch that are in the chunk.
            places: where each of them lies in the chunk.
            num_places: of the chunk, padding included.
            device: where the tensors go.
        """
        index = np.searchsorted(soft.rows, rows)
        reals = np.flatnonzero(np.append(soft.rows, -1)[index] == rows)
        if not len(reals):
            return None
        chosen, own_places = index[reals], places[reals]
        targets, num_targets = _ranges(soft.starts, chosen)
        pulls, num_pulls = _ranges(soft.pull_starts, chosen)
        one_hots, totals = np.full(num_places, -1, np.float32), np.ones(num_places, np.float32)
        one_hots[own_places], totals[own_places] = 0, soft.totals[chosen]

        def put(column: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(column)).to(device)

        return cls(
            reals_Q=put(reals),
            target_places_M=put(np.repeat(own_places, num_targets)),
            targets_M=put(soft.targets[targets]),
            outputs_M=put(targets),
            one_hots_C=put(one_hots),
            totals_C=put(totals),
            pull_places_P=put(np.repeat(own_places, num_pulls)),
            pull_targets_P=put(soft.pull_targets[pulls]),
            pull_weights_P=put(soft.pull_weights[pulls]),
        )


def _narrow(sums: np.ndarray) -> Float32s:
    """Sums beyond float32 become infinite, and their own call fails for it."""
    with np.errstate(over="ignore"):
        return sums.astype(np.float32)


def _starts(counts: npt.NDArray[np.integer]) -> Int64s:
    return np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))


def _ranges(starts: Int64s, chosen: Int64s) -> tuple[Int64s, Int64s]:
    """The indices of the chosen ranges, one after the other, and how many each has."""
    counts = starts[chosen + 1] - starts[chosen]
    before = np.cumsum(counts) - counts
    return np.arange(int(counts.sum())) + np.repeat(starts[chosen] - before, counts), counts
