"""Rows of batches are sorted back into the commands they came from."""

import numpy as np
import pytest

from weft.engine.adapters.soft_targets import SoftTargets
from weft.engine.worker.commands import Origin, PassWork
from weft.engine.worker.partials import Partials, StepOutputs
from weft.engine.worker.scheduler import Passes, Slice
from weft.engine.worker.steps import TrainStep, pack
from weft.engine.worker.units import cut_units


def work(job_id: int, counts: list[int], lengths: list[int], unit_tokens: int = 2) -> PassWork:
    """Targets are numbered from 10 times the id, all of weight 1."""
    number = np.array(counts, np.int32)
    targets = np.arange(sum(counts), dtype=np.int32) + 10 * job_id
    weights = np.ones(sum(counts), np.float32)
    starts = np.concatenate([[0], np.cumsum(number)])
    is_single = number == 1
    single = np.where(is_single, np.append(targets, 0)[starts[:-1]], 0).astype(np.int32)
    has_one_each = bool(is_single.all())
    return PassWork(
        origin=Origin(job_id, 1, "local/s", job_id),
        run_id=f"r{job_id}",
        loss_fn="cross_entropy",
        loss_fn_config={},
        forward_only=False,
        part_outputs=(sum(counts),),
        tokens=np.zeros(len(counts), np.int32),
        lengths=np.array(lengths, np.int32),
        targets=single,
        inputs={"weights": is_single.astype(np.float32)},
        units=cut_units(lengths, unit_tokens),
        soft=None if has_one_each else SoftTargets.build(number, targets, weights),
        output_starts=None if has_one_each else starts,
    )


WORKS = [work(1, [1, 3, 0, 1, 2], [2, 2, 1]), work(2, [1, 1], [2]), work(3, [2, 2], [1, 1])]


def outputs(step: TrainStep) -> StepOutputs:
    """The log-probability of a target is minus its number."""
    soft = np.zeros(0) if step.soft is None else step.soft.targets
    logprobs = -step.targets.astype(np.float32)
    return StepOutputs(logprobs, -logprobs, -soft.astype(np.float32))


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 2, 0, 3, 1]])
@pytest.mark.parametrize("pad_rows", [False, True])
def test_log_probabilities_come_back_in_the_order_of_the_call(
    order: list[int], pad_rows: bool
) -> None:
    slices = (Slice(1, 0, 3, True), Slice(2, 0, 1, True), Slice(3, 0, 1, True))
    step = pack(Passes(slices, True, 9), WORKS, order, pad_rows)
    partials = Partials()
    for one in WORKS:
        partials.begin(one, 0.0)
    partials.keep(WORKS, step, outputs(step))
    for one in WORKS:
        numbers = np.arange(sum(one.part_outputs)) + 10 * one.origin.dispatch_id
        assert partials.is_finite(one, len(one.units))
        partial = partials.take(one)
        assert (-partial.logprobs).tolist() == numbers.tolist()
        assert partial.loss == numbers.sum()
    assert len(partials) == 0


def test_a_command_is_filled_slice_by_slice() -> None:
    one = WORKS[0]
    partials = Partials()
    partials.begin(one, 0.0)
    for first, last, end in ((0, 1, 4), (1, 3, 7)):
        step = pack(
            Passes((Slice(1, first, last, False),), True, 9), [one], range(last - first), False
        )
        partials.keep([one], step, outputs(step))
        assert partials.is_finite(one, last)
        assert partials.is_finite(one, len(one.units)) == (end == 7)
        partials.spend([one, WORKS[1]], 0.5)
    done = partials.take(one)
    assert (done.loss, done.compute_s) == (sum(range(10, 17)), 1.0)
