"""Answer the optimizer steps that are due: one launch for all runs, one verdict each."""

import logging

from ...client.errors import WeftError
from ...client.messages import OptimStep
from ..adapters.optimizer import step
from ..faults import is_out_of_memory
from .commands import CommandWork
from .counters import Counters
from .replies import Replies
from .runs import HeldRun, RunTable

log = logging.getLogger(__name__)


class Optimizing:
    """Carries out `optim_step` commands."""

    def __init__(self, runs: RunTable, replies: Replies, counters: Counters) -> None:
        self._runs = runs
        self._replies = replies
        self._counters = counters

    def step(self, works: list[CommandWork]) -> None:
        """Step every run that may step; refuse the others, each with its own reason.

        What fails together is repeated one by one. Out of memory comes before anything is written;
        another exception may leave the run half written, which then only takes a saved state.
        """
        due: list[tuple[CommandWork, HeldRun, OptimStep]] = []
        for work in works:
            header = work.header
            if not isinstance(header, OptimStep):
                continue
            try:
                held = self._runs.healthy(header.run_id)
            except WeftError as error:
                self._replies.failed(work.origin, error.code, str(error))
            else:
                due.append((work, held, header))
        if not due:
            return
        try:
            results = step(self._runs.store, [(held.run, header) for _, held, header in due])
        except Exception as error:  # the boundary to the device
            log.warning("%d optimizer steps failed together: %s", len(due), error, exc_info=True)
            self._counters.failures["optimizer"] += 1
            if len(due) == 1:
                self._fail(*due[0][:2], error)
            else:
                for work, _, _ in due:
                    self.step([work])
            return
        self._counters.steps["optimizer"] += 1
        for (work, held, _), result in zip(due, results, strict=True):
            if result.error is not None:
                if not held.run.has_gradient:
                    held.clear_counts()
                self._replies.failed(work.origin, result.error.code, str(result.error))
                continue
            calls, tokens = held.num_calls, held.num_tokens
            held.clear_counts()
            held.is_broken = not result.weights_are_finite
            metrics = {
                "unclipped_grad_l2:mean": result.grad_norm,
                "step:max": float(held.run.step),
                "applied_calls:sum": float(calls),
                "applied_tokens:sum": float(tokens),
            }
            self._replies.done(work.origin, {"metrics": metrics}, usage={"optim_steps": 1})

    def _fail(self, work: CommandWork, held: HeldRun, error: Exception) -> None:
        out_of_memory = is_out_of_memory(error)
        held.is_broken = held.is_broken or not out_of_memory
        code = "out_of_memory" if out_of_memory else "internal"
        self._replies.failed(work.origin, code, f"{type(error).__name__}: {error}")
