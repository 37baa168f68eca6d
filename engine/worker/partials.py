"""What passes have produced so far: log-probabilities and losses, until their last slice is done."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .commands import Float32s, PassWork
from .steps import TrainStep


@dataclass(slots=True)
class Partial:
    """Of one command."""

    logprobs: Float32s  # in the order of the answer; NaN until they are there
    started: float  # time.monotonic()
    loss: float = 0.0
    compute_s: float = 0.0  # of the batches it was in, which others shared


@dataclass(frozen=True, slots=True)
class StepOutputs:
    """What the head gave for a batch, on the host."""

    logprobs: Float32s  # [T]
    losses: Float32s  # [T]
    soft_logprobs: Float32s  # of the targets of rows with several


class Partials:
    """The unfinished commands, by dispatch id."""

    def __init__(self) -> None:
        self._partials: dict[int, Partial] = {}

    def __len__(self) -> int:
        return len(self._partials)

    def begin(self, work: PassWork, now: float) -> None:
        """Take a command up, or up again from its beginning."""
        blank = np.full(sum(work.part_outputs), np.nan, np.float32)
        self._partials[work.origin.dispatch_id] = Partial(blank, now)

    def spend(self, works: Iterable[PassWork], seconds: float) -> None:
        """Count the time of a batch for those of its commands that go on or are done."""
        for dispatch_id in {work.origin.dispatch_id for work in works}:
            if dispatch_id in self._partials:
                self._partials[dispatch_id].compute_s += seconds

    def drop(self, dispatch_ids: Iterable[int]) -> None:
        """Forget commands that failed or were withdrawn."""
        for dispatch_id in dispatch_ids:
            self._partials.pop(dispatch_id, None)

    def take(self, work: PassWork) -> Partial:
        """What a command gave that is done."""
        return self._partials.pop(work.origin.dispatch_id)

    def keep(self, works: Sequence[PassWork], step: TrainStep, outputs: StepOutputs) -> None:
        """Sort the rows of a batch back into their commands; sum losses in unit order."""
        losses = outputs.losses.astype(np.float64)
        if step.soft is not None:
            losses[step.soft.rows] = step.soft.losses(outputs.soft_logprobs)
        starts = step.unit_starts
        sums: list[tuple[int, int, float]] = []
        for place, (piece, index) in enumerate(
            zip(step.unit_slices.tolist(), step.unit_indices.tolist(), strict=True)
        ):
            if piece < 0:
                continue
            work = works[piece]
            rows = slice(int(starts[place]), int(starts[place + 1]))
            own = work.outputs(work.rows(index))
            partial = self._partials[work.origin.dispatch_id]
            partial.logprobs[own] = _answer_order(step, outputs, rows)
            sums.append((piece, index, float(losses[rows].sum())))
        for piece, _, loss in sorted(sums):
            self._partials[works[piece].origin.dispatch_id].loss += loss

    def is_finite(self, work: PassWork, last_unit: int) -> bool:
        """Whether everything of units 0..last_unit - 1 is finite."""
        partial = self._partials[work.origin.dispatch_id]
        done = work.outputs(work.rows(last_unit - 1)).stop
        return bool(np.isfinite(partial.loss) and np.isfinite(partial.logprobs[:done]).all())


def _answer_order(step: TrainStep, outputs: StepOutputs, rows: slice) -> Float32s:
    """The log-probabilities of all targets of some rows, row after row."""
    if step.num_targets is None or step.soft is None:
        return outputs.logprobs[rows]
    counts = step.num_targets[rows]
    first, last = step.soft.starts[np.searchsorted(step.soft.rows, (rows.start, rows.stop))]
    is_single = np.repeat(counts == 1, counts)
    found = np.empty(len(is_single), np.float32)
    found[is_single] = outputs.logprobs[rows][counts == 1]
    found[~is_single] = outputs.soft_logprobs[first:last]
    return found
