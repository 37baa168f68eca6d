"""The rows with several targets of one chunk of the head.

C places of the chunk, Q rows with several targets in it, M targets of them, P pulls.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..model.uploads import upload
from .soft_targets import Int64s, SoftTargets


@dataclass(frozen=True, slots=True)
class SoftChunk:
    """What the head needs of them, on the device."""

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
            return upload(np.ascontiguousarray(column), device)

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


def _ranges(starts: Int64s, chosen: Int64s) -> tuple[Int64s, Int64s]:
    """The indices of the chosen ranges, one after the other, and how many each has."""
    counts = starts[chosen + 1] - starts[chosen]
    before = np.cumsum(counts) - counts
    return np.arange(int(counts.sum())) + np.repeat(starts[chosen] - before, counts), counts
