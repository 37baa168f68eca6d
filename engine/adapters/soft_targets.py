"""Rows of cross-entropy that have several weighted targets, laid out once on the host.

    loss = -sum_k w_k log p(t_k)        gradient by the logits: total * p - sum_k w_k one_hot(t_k)

with total the sum of the w_k. Rows with one target are the usual ones and do not appear here.
Q such rows, M targets of them, P pulls: the targets of a row that have a weight, each once.
T rows of a batch or command.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

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
    pull_targets: Int64s  # [P]
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
        pulls, pull_weights = _pulls(owners << 32 | own_targets, own_weights)
        pull_counts = np.bincount(pulls >> 32, minlength=len(rows))
        return cls(
            rows=rows,
            starts=starts,
            targets=own_targets,
            weights=own_weights,
            totals=_narrow(totals),
            pull_starts=_starts(pull_counts),
            pull_targets=pulls & 0xFFFF_FFFF,
            pull_weights=pull_weights,
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


def _pulls(keys: Int64s, weights: Float32s) -> tuple[Int64s, Float32s]:
    """The keys that have a weight, each once and row after row, and their weights."""
    is_pull = weights != 0
    keys, weights = keys[is_pull], weights[is_pull]
    ordered = np.sort(keys)
    if not (ordered[1:] == ordered[:-1]).any():
        return keys, weights
    keys, groups = np.unique(keys, return_inverse=True)
    sums = np.bincount(groups, weights, len(keys))
    return keys[sums != 0], _narrow(sums[sums != 0])


def _narrow(sums: np.ndarray) -> Float32s:
    """Sums beyond float32 become infinite, and their own call fails for it."""
    with np.errstate(over="ignore"):
        return sums.astype(np.float32)


def _starts(counts: npt.NDArray[np.integer]) -> Int64s:
    return np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
