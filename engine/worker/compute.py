"""The compute thread of a worker: the only one that touches the device and the runs' state.

It drains what the network thread decoded, asks the scheduler what to do, does it, and answers.
Every step is atomic: it either takes effect for all its commands or is repeated smaller.
"""

import itertools
import logging
import queue
import time
from collections import Counter
from collections.abc import Hashable

from ...client import wire
from ...client.errors import WeftError
from ...client.limits import limit
from ...client.worker_messages import Withdraw
from ..faults import is_out_of_memory
from ..sampling.base_generator import BaseGenerator
from ..sampling.requests import SampleDone, SampleFailed
from ..trace import Trace
from .commands import CommandWork, PassWork, SampleWork, Work
from .controls import Controls
from .counters import Counters, kind_of
from .network import Network, Stopped
from .optimizing import Optimizing
from .progress import CommandProgress, CountersReport
from .replies import Replies, split_arrays
from .runs import RunTable
from .scheduler import Control, Decision, Job, Optimizers, Passes, Sampling, Scheduler
from .threads import StepThreads
from .train import Trainer

log = logging.getLogger(__name__)


class Compute:
    """The loop that turns decisions into device work."""

    def __init__(
        self,
        *,
        network: Network,
        scheduler: Scheduler,
        runs: RunTable,
        trainer: Trainer,
        generator: BaseGenerator,
        controls: Controls,
        trace: Trace,
        threads: StepThreads,
        macs_per_row: float,
    ) -> None:
        self._inbox = network.inbox
        self._replies = Replies(network)
        self._progress = CommandProgress(lambda header: network.send(wire.encode(header)))
        self._scheduler = scheduler
        self._runs = runs
        self._trainer = trainer
        self._generator = generator
        self._controls = controls
        self._counters = Counters()
        self._report = CountersReport(
            lambda header: network.send(wire.encode(header)),
            lambda: self._counters.record(generator, runs),
        )
        self._optimizing = Optimizing(runs, self._replies, self._counters)
        self._trace = trace
        self._threads = threads
        self._macs_per_row = macs_per_row
        self._commands: dict[int, CommandWork | PassWork] = {}
        self._samples: dict[Hashable, SampleWork] = {}
        self._stop: Stopped | None = None

    def run(self) -> str:
        """Work until told to stop, then end after the step under way; returns why it stopped.

        Whoever says so waits for no more answers.
        """
        while True:
            self._drain(wait=not (self._scheduler or self._generator.has_work))
            if self._stop is not None:
                return self._stop.reason
            decision = self._scheduler.next(self._generator.has_work)
            if decision is not None:
                start = time.perf_counter()
                self._carry_out(decision)
                seconds = time.perf_counter() - start
                self._scheduler.spent(decision, seconds)
                self._counters.spent(decision, seconds)
                self._report.changed()
                self._progress.report(self._scheduler.started)
            self._report.report()

    def _drain(self, wait: bool) -> None:
        while True:
            if wait and self._stop is not None:
                return
            if not wait and self._inbox.empty():
                return
            item = self._await_item() if wait else self._inbox.get()
            wait = False
            match item:
                case Stopped():
                    self._stop = item
                case Withdraw():
                    self._withdraw(item)
                    self._report.changed()
                case SampleWork():
                    self._submit(item)
                case PassWork():
                    kind = "forward" if item.forward_only else "forward_backward"
                    units = tuple(unit.num_tokens for unit in item.units)
                    size = self._runs.unit_bytes(item.run_id)
                    job = Job(item.origin.dispatch_id, item.run_id, kind, units, size)
                    self._queue(item, job)
                case CommandWork():
                    owner = self._controls.owner(item)
                    self._queue(item, Job(item.origin.dispatch_id, owner, item.header.kind))

    def _await_item(self) -> Work | Withdraw | Stopped:
        """Wait for something to do; what has changed is told when nothing comes for a while."""
        due_in_s = self._report.due_in_s
        if due_in_s is not None:
            try:
                return self._inbox.get(timeout=due_in_s)
            except queue.Empty:
                self._report.report()
        return self._inbox.get()

    def _queue(self, work: CommandWork | PassWork, job: Job) -> None:
        self._commands[job.job_id] = work
        self._scheduler.add(job)

    def _carry_out(self, decision: Decision) -> None:
        match decision:
            case Passes():
                self._pass(decision)
            case Optimizers(job_ids):
                self._threads.prepare(0)
                works = [self._take(job_id) for job_id in job_ids]
                with self._trace.span("optimizer", runs=len(works)):
                    self._optimizing.step([w for w in works if isinstance(w, CommandWork)])
            case Control(job_id):
                work = self._take(job_id)
                if isinstance(work, CommandWork):
                    with self._trace.span(work.header.kind, lane=work.origin.lane):
                        self._control(work)
            case Sampling():
                self._sample()

    def _take(self, job_id: int) -> CommandWork | PassWork:
        self._scheduler.finish(job_id)
        return self._commands.pop(job_id)

    def _control(self, work: CommandWork) -> None:
        try:
            result = self._controls.carry_out(work)
        except WeftError as error:
            self._replies.failed(work.origin, error.code, str(error))
        except Exception as error:  # the boundary to the device and the disk
            log.exception("%s failed", work.header.kind)
            code = "out_of_memory" if is_out_of_memory(error) else "internal"
            self._replies.failed(work.origin, code, f"{type(error).__name__}: {error}")
            self._counters.failures["control"] += 1
        else:
            self._replies.done(work.origin, result)
            self._counters.steps["control"] += 1

    def _pass(self, decision: Passes) -> None:
        works = [self._commands[piece.job_id] for piece in decision.slices]
        passes = [work for work in works if isinstance(work, PassWork)]
        if self._refuse(passes):
            return
        lanes = {work.origin.lane for work in passes}
        self._threads.prepare(decision.num_tokens * self._macs_per_row)
        try:
            with self._trace.span(
                "train_step" if decision.backward else "forward_step",
                tenants=len(lanes),
                runs=len({work.run_id for work in passes}),
                tokens=decision.num_tokens,
                lanes=sorted(lanes),
            ):
                outcome = self._trainer.step(decision, passes)
        except Exception as error:  # the boundary to the device
            self._trainer.abandon(passes)
            self._counters.failures[kind_of(decision)] += 1
            self._retry(decision, error)
            return
        self._counters.passed(decision, len(lanes))
        for piece, work in zip(decision.slices, passes, strict=True):
            failure = outcome.failures.get(piece.job_id)
            if failure is not None:
                self._take(piece.job_id)
                self._replies.failed(work.origin, failure.code, str(failure))
        for job_id in outcome.repeats:
            self._scheduler.restart(job_id)
        kept = tuple(
            piece
            for piece in decision.slices
            if piece.job_id not in outcome.failures and piece.job_id not in outcome.repeats
        )
        for job_id in self._scheduler.advance(Passes(kept, decision.backward, decision.num_tokens)):
            taken = self._take(job_id)
            if isinstance(taken, PassWork):
                self._answer_pass(taken, decision, len(lanes))

    def _refuse(self, works: list[PassWork]) -> bool:
        """Fail the passes of runs that cannot train; whether there were any."""
        is_refused = False
        for work in works:
            try:
                self._runs.healthy(work.run_id)
            except WeftError as error:
                self._take(work.origin.dispatch_id)
                self._replies.failed(work.origin, error.code, str(error))
                is_refused = True
        return is_refused

    def _retry(self, decision: Passes, error: Exception) -> None:
        out_of_memory = is_out_of_memory(error)
        log.warning("a train step failed and is repeated smaller: %s", error, exc_info=True)
        for given_up in self._scheduler.retry_smaller(decision, out_of_memory):
            work = self._take(given_up.job_id)
            code = "out_of_memory" if out_of_memory else "internal"
            self._replies.failed(work.origin, code, f"{type(error).__name__}: {error}")

    def _answer_pass(self, work: PassWork, decision: Passes, num_tenants: int) -> None:
        logprobs, metrics = self._trainer.collect(work)
        metrics["batch_tenants:max"] = float(num_tenants)
        metrics["batch_tokens:max"] = float(decision.num_tokens)
        starts = [sum(work.part_outputs[:part]) for part in range(len(work.part_outputs) + 1)]
        parts = [{"logprobs": logprobs[first:last]} for first, last in itertools.pairwise(starts)]
        kind = "forward_tokens" if work.forward_only else "train_tokens"
        self._replies.done(work.origin, {"metrics": metrics}, parts, {kind: len(work.tokens)})

    def _submit(self, work: SampleWork) -> None:
        try:
            self._generator.submit(self._runs.sample_request(work))
        except WeftError as error:
            self._replies.failed(work.origin, error.code, str(error))
        else:
            self._samples[work.origin.dispatch_id] = work

    def _sample(self) -> None:
        rows = self._generator.num_rows_ahead
        self._threads.prepare(rows * self._macs_per_row)
        with self._trace.span("sample", rows=rows) as told:
            outcomes = self._generator.step()
            stepped = self._generator.take_stepped()
            lanes = sorted({self._samples[key].origin.lane for key in stepped})
            told |= {"tenants": len(lanes), "lanes": lanes}
        if lanes:
            self._counters.sampled(len(lanes))
        for outcome in outcomes:
            work = self._samples.pop(outcome.key)
            match outcome:
                case SampleDone():
                    usage = Counter(
                        sample_tokens=outcome.num_new_tokens, prompt_tokens=len(work.tokens)
                    )
                    self._replies.done(
                        work.origin,
                        outcome.result(),
                        split_arrays(outcome.arrays(), limit("part_bytes")),
                        dict(usage),
                    )
                case SampleFailed():
                    self._replies.failed(work.origin, outcome.code, outcome.detail)

    def _withdraw(self, withdraw: Withdraw) -> None:
        for dispatch_id in withdraw.dispatch_ids:
            if dispatch_id in self._samples:
                self._generator.cancel(dispatch_id)
                work = self._samples.pop(dispatch_id)
                self._replies.failed(work.origin, "cancelled", "the request was withdrawn")
            elif dispatch_id in self._commands and not self._scheduler.is_started(dispatch_id):
                taken = self._take(dispatch_id)
                self._replies.failed(taken.origin, "cancelled", "the request was withdrawn")
        for run_id in withdraw.run_ids:
            for job_id in self._scheduler.jobs_of(run_id):
                taken = self._take(job_id)
                if isinstance(taken, PassWork):
                    self._trainer.abandon([taken])
                self._replies.failed(taken.origin, "cancelled", "the run was closed")
            self._runs.drop_run(run_id)
        for sampler_id in withdraw.sampler_ids:
            self._runs.drop_sampler(sampler_id)
