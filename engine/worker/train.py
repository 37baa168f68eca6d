"""Train steps as transactions: run packed passes, stage their gradients, commit what is whole.

Nothing of a step is in effect before `step` has returned: gradients go to each run's stage, and a
stage becomes the gradient only when all units of its command have succeeded finite. Whatever
fails on the way, at any layer, `abandon` leaves every run as it was before the commands began.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from ...client.errors import BadRequest, WeftError
from ...kernels.plan import packing_order
from ..adapters.binding import Binder, BoundLinears
from ..adapters.loss_head import HeadResult, LossHead
from ..adapters.losses import LossBatch
from ..model.base import BaseModel
from ..model.open_attention import packed_attentions
from ..model.uploads import upload
from ..trace import Trace
from .commands import Float32s, PassWork
from .metrics import pass_metrics
from .partials import Partials, StepOutputs
from .runs import HeldRun, RunTable
from .scheduler import Passes
from .steps import TrainStep, list_units, pack


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a step's jobs; those in neither field succeeded."""

    failures: dict[int, WeftError] = field(default_factory=dict)
    repeats: frozenset[int] = frozenset()


class Trainer:
    """Runs forward and backward passes of many runs as one batch."""

    def __init__(
        self,
        model: BaseModel,
        runs: RunTable,
        head: LossHead,
        trace: Trace,
        *,
        is_deterministic: bool,
        recompute_above_tokens: int,
    ) -> None:
        self._model = model
        self._runs = runs
        self._store = runs.store
        self._head = head
        self._trace = trace
        self._is_deterministic = is_deterministic
        self._recompute_above_tokens = recompute_above_tokens
        self._binder = Binder(runs.store, is_deterministic=is_deterministic)
        self._attentions = packed_attentions(model, is_deterministic=is_deterministic)
        self._partials = Partials()

    def step(self, decision: Passes, works: Sequence[PassWork]) -> Outcome:
        """Compute one batch. Jobs that end here and are not in the outcome are in effect.

        Args:
            decision: the slices to run.
            works: the command of each slice.

        Raises:
            Exception: whatever the device raised; call `abandon` then.
        """
        started = time.monotonic()
        held = [self._runs.healthy(work.run_id) for work in works]
        if decision.backward:
            fresh = {id(h): h.run for h in held if not h.run.is_staging}
            self._store.begin(*fresh.values())
        for piece, work in zip(decision.slices, works, strict=True):
            if piece.first == 0:
                self._partials.begin(work, started)
        with self._trace.span("plan"):
            step, linears = self._plan(decision, works, held)
        outputs = self._compute(decision, works, step, linears)
        self._partials.keep(works, step, outputs)
        outcome = self._judge(decision, works, held)
        self._partials.drop((*outcome.failures, *outcome.repeats))
        if decision.backward:
            self._commit(decision, works, held, outcome)
        self._partials.spend(works, time.monotonic() - started)
        return outcome

    def collect(self, work: PassWork) -> tuple[Float32s, dict[str, float]]:
        """The outputs of a command whose last slice succeeded: logprobs and metrics."""
        partial = self._partials.take(work)
        metrics = pass_metrics(work, partial.logprobs, partial.loss)
        metrics["queue_s:max"] = work.origin.queued_s + partial.started - work.origin.arrived
        metrics["compute_s:sum"] = partial.compute_s
        return partial.logprobs, metrics

    def abandon(self, works: Sequence[PassWork]) -> None:
        """Undo what commands have done so far: of a step that raised, or of a run that is to go."""
        self._partials.drop(work.origin.dispatch_id for work in works)
        for work in works:
            if work.run_id in self._runs:
                self._store.discard(self._runs.run(work.run_id).run)

    def _plan(
        self, decision: Passes, works: Sequence[PassWork], held: Sequence[HeldRun]
    ) -> tuple[TrainStep, BoundLinears]:
        units = list_units(decision)
        lengths = [works[piece].units[index].num_tokens for piece, index in units]
        versions = [held[piece].run.version for piece, _ in units]
        order = packing_order(
            [version.rank for version in versions],
            [int(version.targets) for version in versions],
            lengths,
        )
        step = pack(decision, works, order, pad_rows=self._is_deterministic)
        owners = [held[piece].run if piece >= 0 else None for piece in step.unit_slices]
        linears = self._binder.bind(
            [None if run is None else run.version for run in owners],
            owners if decision.backward else [None] * len(owners),
            step.unit_rows,
            unit_order=np.maximum(step.unit_slices, 0).astype(np.int64) << 32 | step.unit_indices,
        )
        return step, linears

    def _compute(
        self, decision: Passes, works: Sequence[PassWork], step: TrainStep, linears: BoundLinears
    ) -> StepOutputs:
        """Forward, and backward when asked for."""
        device = self._store.device
        tokens_T = upload(step.tokens, device)
        positions_T = upload(step.positions, device)
        losses = LossBatch.build(
            loss_fns=[works[piece].loss_fn if piece >= 0 else None for piece in step.unit_slices],
            configs=[
                works[piece].loss_fn_config if piece >= 0 else {} for piece in step.unit_slices
            ],
            row_counts=step.unit_rows,
            targets=step.targets,
            inputs=step.inputs,
            device=device,
            cu_seqlens=step.cu_seqlens,
            num_targets=step.num_targets,
            soft=step.soft,
        )
        with (
            torch.set_grad_enabled(decision.backward),
            self._trace.span("forward", tokens=len(step.tokens)),
        ):
            hidden_TD = self._model.forward(
                tokens_T,
                positions_T,
                self._attentions(step.cu_seqlens),
                linears,
                checkpoint_layers=self._recomputed_layers(len(step.tokens)),
            )
        if not decision.backward:
            with self._trace.span("head"):
                return _on_host(self._head.forward(hidden_TD, losses, linears))
        with self._trace.span("head"):
            result = self._head.forward_backward(hidden_TD.detach(), losses, linears)
        with self._trace.span("backward", tokens=len(step.tokens)):
            if hidden_TD.requires_grad:  # not where the unembedding alone can be adapted
                torch.autograd.backward(hidden_TD, result.dhidden_TD)
            linears.flush()
        return _on_host(result)

    def _recomputed_layers(self, num_tokens: int) -> range:
        is_large = num_tokens > self._recompute_above_tokens
        return range(self._model.config.num_layers if is_large else 0)

    def _judge(
        self, decision: Passes, works: Sequence[PassWork], held: Sequence[HeldRun]
    ) -> Outcome:
        """Find the jobs that are not finite, and those that must be repeated without them."""
        failures: dict[int, WeftError] = {}
        repeats: set[int] = set()
        by_run: dict[int, list[int]] = {}
        for place, one in enumerate(held):
            by_run.setdefault(id(one), []).append(place)
        runs = [held[places[0]].run for places in by_run.values()]
        finite = self._store.stage_is_finite(runs) if decision.backward else [True] * len(runs)
        for places, is_stage_finite in zip(by_run.values(), finite, strict=True):
            ids = [decision.slices[place].job_id for place in places]
            bad = [
                decision.slices[place].job_id
                for place in places
                if not self._partials.is_finite(works[place], decision.slices[place].last)
            ]
            if not is_stage_finite and not bad and len(ids) == 1:
                bad = ids
            for job_id in bad:
                failures[job_id] = BadRequest(
                    "the loss or gradient of this call is not finite", "non_finite"
                )
            if bad or not is_stage_finite:
                repeats.update(job_id for job_id in ids if job_id not in failures)
        return Outcome(failures, frozenset(repeats) if decision.backward else frozenset())

    def _commit(
        self,
        decision: Passes,
        works: Sequence[PassWork],
        held: Sequence[HeldRun],
        outcome: Outcome,
    ) -> None:
        spoiled = {*outcome.failures, *outcome.repeats}
        ended: list[tuple[HeldRun, PassWork]] = []
        for piece, work, one in zip(decision.slices, works, held, strict=True):
            if piece.job_id in spoiled:
                self._store.discard(one.run)
            elif piece.ends_job:
                ended.append((one, work))
        self._store.commit(*{id(one): one.run for one, _ in ended}.values())
        for one, work in ended:
            one.num_calls += 1
            one.num_tokens += len(work.tokens)


def _on_host(result: HeadResult) -> StepOutputs:
    return StepOutputs(
        logprobs=result.logprobs_T.cpu().numpy(),
        losses=result.losses_T.cpu().numpy(),
        soft_logprobs=result.soft_logprobs_M.cpu().numpy(),
    )
