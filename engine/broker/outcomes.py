"""What the outcome of a request changes: runs and samplers open, checkpoints appear, work is due."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, cast

from ...client.errors import BadRequest, sentence
from ...client.messages import (
    CreateRun,
    CreateSampler,
    ForkRun,
    ForwardBackward,
    OptimStep,
    Reply,
    Sample,
    SaveForSampler,
    SaveState,
)
from ...client.wire import decode
from ...client.worker_messages import Withdraw
from ..files.checkpoint import Checkpoint, saved_path
from .answers import Answers
from .books import Books
from .events import Frames, ToWorker
from .leases import Phase, Run, Sampler
from .past import PastSampler
from .work import State, Work


class Outcomes:
    """Applies successes and failures to the books. What becomes due is put into `ready`."""

    def __init__(self, books: Books, answers: Answers) -> None:
        self._books = books
        self._answers = answers
        self.ready: deque[Work] = deque()  # queued requests to be handed to the dispatcher
        self._on_done: dict[type, Callable[[Work, Frames], None]] = {
            CreateRun: self._run_opened,
            CreateSampler: self._sampler_opened,
            ForkRun: self._run_forked,
            SaveForSampler: self._weights_saved,
            SaveState: self._state_saved,
        }

    def release(self, run: Run) -> None:
        """Make ready the commands of a run whose turn has come."""
        self.ready.extend(run.log.due(run.phase is Phase.OPEN))
        is_given_up = run.log.next_seq and 0 not in run.log.commands and not run.forked_from
        if run.phase is Phase.OPENING and is_given_up:
            self.never_created(run, "its number 0 was given up")

    def done(self, work: Work, replies: Sequence[Frames]) -> None:
        """A worker has carried out a request and answered with these parts."""
        kind = type(work.header)
        effect = self._on_done.get(kind)
        if effect is not None:
            try:
                effect(work, replies[0])
            except BadRequest as error:
                self.failed(work, "internal", f"the worker's answer cannot be read: {error}")
                return
        usage = work.session.usage
        usage[kind.kind] += 1
        for name, amount in work.usage.items():
            usage[name] += amount
        self._answers.settle(work, [(None, frames) for frames in replies])
        if kind is Sample:
            self._sampled(work)
        elif kind in (CreateRun, ForkRun) and work.run is not None:
            self.release(work.run)
        elif kind is OptimStep and work.run is not None:
            failed_calls = work.run.failed_calls
            later = [call for call in failed_calls if call[0] > work.seq]
            failed_calls.clear()
            failed_calls.extend(later)
        if self._books.tells_requests:
            self._books.note("done", work.session.tenant, work.ids())

    def failed(self, work: Work, code: str, detail: str) -> None:
        """A request has failed, here or on a worker."""
        header = work.header
        if type(header) is Sample:
            self._sampled(work)
        run = work.run
        if run is not None:
            detail = _with_failed_calls(run, work, code, detail)
        self._answers.fail(work, code, detail)
        if type(header) is CreateRun and run is not None and run.phase is Phase.OPENING:
            self.never_created(run, detail)
        elif work.fork is not None and work.fork.phase is Phase.OPENING:
            self.never_created(work.fork, detail)
        elif isinstance(header, CreateSampler | SaveForSampler):
            sampler = self._books.samplers.get(header.sampler_id)
            if sampler is not None and sampler is work.sampler:
                self.drop_sampler(sampler, code, f"its sampler was not opened: {detail}")
        if run is not None:
            self.release(run)
        if self._books.tells_requests:
            fields = work.ids() | {"code": code, "detail": sentence(detail)}
            self._books.note("failed", work.session.tenant, fields)

    def fail_held(self, run: Run, code: str, detail: str) -> None:
        """Fail the commands of a run that are not yet due."""
        for work in run.log.held():
            self.failed(work, code, detail)

    def create_later(self, work: Work, detail: str) -> None:
        """The memory of the workers is full: the run may be asked for again under number 0."""
        run = work.run
        if run is None:
            raise AssertionError("a create_run without its run")
        self._answers.give_back(work, detail)
        run.log.give_back(work)
        if run.worker is not None:
            run.worker.runs.pop(run.run_id, None)
            run.worker = None
        if run.session.is_ended:
            self.never_created(run, "its session ended")

    def fork_later(self, work: Work, detail: str) -> None:
        """The memory of the worker is full: the fork may be asked for again under its number.

        The commands after it wait until it is, or until its number is voided. Those that came
        early for the new run fail.
        """
        run, fork = work.run, work.fork
        if run is None or fork is None:
            raise AssertionError("a fork_run without its runs")
        can_wait = fork.phase is Phase.OPENING and not work.session.is_ended
        if not can_wait or not run.log.give_back(work):
            self.failed(work, "busy", detail)
            return
        self._answers.give_back(work, detail)
        self._books.runs.pop(fork.run_id)
        fork.session.runs.discard(fork.run_id)
        self.fail_held(fork, "not_found", f"run {fork.run_id!r} was not created: {detail}")

    def never_created(self, run: Run, reason: str) -> None:
        """Nobody will ask for this run again."""
        detail = f"run {run.run_id!r} was not created: {reason}"
        self._books.end_run(run, Phase.CLOSED, "not_found", detail)
        self.fail_held(run, "not_found", detail)

    def drop_sampler(self, sampler: Sampler, code: str, detail: str) -> None:
        """Strike a sampler off, and fail what waits for it."""
        was_open, sampler.phase = sampler.phase is not Phase.OPENING, Phase.CLOSED
        if was_open:
            past = PastSampler.of(sampler)
            self._books.past_samplers.add(sampler.tenant, sampler.sampler_id, past)
        self._books.samplers.pop(sampler.sampler_id, None)
        sampler.session.samplers.discard(sampler.sampler_id)
        if sampler.worker is not None:
            sampler.worker.samplers.pop(sampler.sampler_id, None)
        waiting, sampler.waiting = sampler.waiting, []
        for work in waiting:
            self.failed(work, code, detail)

    def withdraw_sampler(self, sampler: Sampler) -> None:
        """Tell the worker that nobody will use a sampler any more."""
        worker = sampler.worker
        if worker is not None:
            worker.last_sent = self._books.now
            header = Withdraw(sampler_ids=[sampler.sampler_id])
            self._books.actions.append(ToWorker(worker.peer, header))

    def _sampled(self, work: Work) -> None:
        sampler = work.sampler
        if sampler is not None:
            sampler.num_pending -= 1
            if sampler.phase is Phase.CLOSED and not sampler.num_pending:
                self.withdraw_sampler(sampler)

    def _run_opened(self, work: Work, frames: Frames) -> None:
        result = _read_result(frames)
        run = work.run
        if run is None:
            raise AssertionError("a create_run without its run")
        self._open_run(run, result)

    def _run_forked(self, work: Work, frames: Frames) -> None:
        result = _read_result(frames)
        worker = work.run.worker if work.run is not None else None
        if work.fork is None or worker is None:
            raise AssertionError("a fork_run without its runs")
        if work.fork.phase is Phase.OPENING:
            self._open_run(work.fork, result)
        else:  # it was closed before it was there
            worker.last_sent = self._books.now
            header = Withdraw(run_ids=[work.fork.run_id])
            self._books.actions.append(ToWorker(worker.peer, header))

    def _open_run(self, run: Run, info: dict[str, Any]) -> None:
        run.info = info
        run.phase = Phase.OPEN
        self.release(run)
        self._books.note("run_created", run.tenant, {"run_id": run.run_id, "lane": run.lane})

    def _sampler_opened(self, work: Work, frames: Frames) -> None:
        if work.sampler is not None and type(work.header) is CreateSampler:
            result = _read_result(frames)
            work.sampler.base_model = str(result.get("base_model", work.model))
            self._open(work.sampler)

    def _weights_saved(self, work: Work, frames: Frames) -> None:
        header, run = cast(SaveForSampler, work.header), work.run
        if run is None:
            raise AssertionError("a command without its run")
        result = _read_result(frames)
        if header.name:
            self._add_checkpoint(run, header, result, has_optimizer=False)
        if work.sampler is not None:
            work.sampler.base_model = str(run.info.get("base_model", ""))
            work.sampler.model_path = str(result.get("path", ""))
            self._open(work.sampler)

    def _state_saved(self, work: Work, frames: Frames) -> None:
        header, run = cast(SaveState, work.header), work.run
        if run is None:
            raise AssertionError("a command without its run")
        self._add_checkpoint(run, header, _read_result(frames), header.include_optimizer)

    def _open(self, sampler: Sampler) -> None:
        if sampler.phase is Phase.CLOSED:
            self.withdraw_sampler(sampler)
            return
        sampler.phase = Phase.OPEN
        waiting, sampler.waiting = sampler.waiting, []
        self.ready.extend(work for work in waiting if work.state is State.QUEUED)

    def _add_checkpoint(
        self,
        run: Run,
        header: SaveState | SaveForSampler,
        result: dict[str, Any],
        has_optimizer: bool,
    ) -> None:
        info = run.info
        checkpoint = Checkpoint(
            path=saved_path(header),
            tenant=run.tenant,
            base_model=str(info.get("base_model", run.header.base_model)),
            rank=int(info.get("rank", run.header.rank)),
            alpha=float(info.get("alpha", run.header.alpha)),
            train_attn=bool(info.get("train_attn", run.header.train_attn)),
            train_mlp=bool(info.get("train_mlp", run.header.train_mlp)),
            train_unembed=bool(info.get("train_unembed", run.header.train_unembed)),
            step=int(result.get("step", 0)),
            size_bytes=int(result.get("size_bytes", 0)),
            created=float(result.get("created", self._books.now + self._books.wall_offset)),
            user_metadata=header.user_metadata,
            has_optimizer=has_optimizer,
            expires=float(result.get("expires", 0.0)),
        )
        self._books.catalog.add(checkpoint)


def _with_failed_calls(run: Run, work: Work, code: str, detail: str) -> str:
    """Note a failed call of a run; tell an optim_step without a gradient why it has none."""
    header = work.header
    if type(header) is ForwardBackward and not header.forward_only:
        run.failed_calls.append((work.seq, f"call {work.seq} failed, {code}: {detail[:200]}"))
    elif type(header) is OptimStep and code == "no_gradients":
        before = [text for seq, text in run.failed_calls if seq < work.seq]
        detail = "; ".join([detail, *before])
    return detail


def _read_result(frames: Frames) -> dict[str, Any]:
    """The result in a worker's encoded Reply; raises BadRequest when it is none."""
    reply = decode(cast(bytes, frames[0])) if frames else None
    if not isinstance(reply, Reply):
        raise BadRequest("not a reply")
    return reply.result
