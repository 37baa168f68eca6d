"""Requests at the door: repeated, refused, asked to come back, held, or made ready."""

from dataclasses import replace

from ...client.errors import BadRequest, Busy, WeftError
from ...client.messages import (
    Cancel,
    CloseRun,
    CloseSampler,
    Command,
    CreateRun,
    CreateSampler,
    ForkRun,
    ForwardBackward,
    Request,
    Sample,
    SaveForSampler,
    Void,
)
from .answers import Answers
from .books import Books
from .checks import (
    check_command,
    check_run_id,
    check_sample,
    check_sampler,
    check_sampler_id,
    create_model,
    find_run,
)
from .dispatching import Dispatcher
from .events import ClientMessage, Frames
from .journal import Accepted, Voided
from .leases import Phase, Run, Sampler
from .outcomes import Outcomes
from .sessions import Session
from .work import State, Work

ASKERS = 16  # who may wait for the outcome of one command


class Accepting:
    """Turns clients' requests into work, or answers them at once."""

    def __init__(
        self, books: Books, answers: Answers, outcomes: Outcomes, dispatcher: Dispatcher
    ) -> None:
        self._books = books
        self._config = books.config
        self._answers = answers
        self._outcomes = outcomes
        self._dispatcher = dispatcher

    def command(self, session: Session, message: ClientMessage, header: Command) -> None:
        """An ordered request of a run, or one part of it."""
        run = self._books.runs.get(header.run_id)
        if run is None or run.tenant != session.tenant:
            run = self._new_run(session, header)
        log = run.log
        work = log.commands.get(header.seq)
        if work is not None:
            self._again(session, work, message, header)
            return
        if log.is_used(header.seq):
            detail = f"number {header.seq} of the run is used up, and its answer is not kept"
            raise BadRequest(detail, log.fate(header.seq))
        if run.code:
            raise WeftError(run.detail, run.code)
        self._refuse_when_stopping()
        if header.request_id in session.requests:
            raise BadRequest(f"request id {header.request_id} is taken", "conflict")
        size = _size(message.frames)
        num_parts = header.num_parts if type(header) is ForwardBackward else 1
        try:
            self._check_size(size, num_parts)
            check_command(self._books, session, run, header)
        except BadRequest as error:
            self._use_up(session, run, header, error)
            return
        self._check_room(session, run, header.seq, size * num_parts)
        if type(header) is ForkRun:
            self._check_runs(session)
        work = self._enter(session, run, header, num_parts)
        work.reserved = size * num_parts
        session.waiting_bytes += work.reserved
        self._books.total_bytes += work.reserved
        if type(header) is CreateRun:
            work.model = create_model(self._books, session, header)
        elif type(header) is SaveForSampler and header.sampler_id:
            work.sampler = self._open_sampler(session, header.sampler_id, run.run_id)
        elif type(header) is ForkRun:
            work.fork = self._add_fork(session, run, header)
        self._take(work, message, header, size)

    def malformed(self, session: Session, run_id: str, seq: int) -> None:
        """A command that cannot be read still uses up its number."""
        run = self._books.runs.get(run_id)
        if run is None or run.tenant != session.tenant or not 0 <= seq < 2**63:
            return
        known = run.log.commands.get(seq)
        if known is None and run.log.num_voids < self._config.void_ranges:
            run.log.void(seq, seq)
        elif known is not None and known.state is State.HELD and known.missing:
            self._outcomes.failed(known, "malformed", "one of its parts cannot be read")
        self._outcomes.release(run)

    def void(self, session: Session, message: ClientMessage, header: Void) -> None:
        """Numbers that will not be sent are used up."""
        run = find_run(self._books, session, header.run_id)
        if not 0 <= header.first_seq <= header.last_seq:
            raise BadRequest(f"void of {header.first_seq} to {header.last_seq}")
        if run.log.num_voids >= self._config.void_ranges and not run.log.is_used(header.last_seq):
            raise Busy(f"{run.log.num_voids} ranges of the run are voided ahead of their turn")
        if header.request_id in session.requests:
            self._answer_again(session, session.requests[header.request_id], header.request_id)
            return
        for work in run.log.void(header.first_seq, header.last_seq):
            self._outcomes.failed(work, "cancelled", "its number was voided")
        work = self._enter(session, None, header)
        reply = self._books.success(header.request_id, {})
        self._answers.settle(
            work, [(reply, ())], Voided(run.run_id, header.first_seq, header.last_seq)
        )
        self._outcomes.release(run)

    def sample(self, session: Session, message: ClientMessage, header: Sample) -> None:
        """A prompt to be continued."""
        known = session.requests.get(header.request_id)
        if known is not None:
            self._again(session, known, message, header)
            return
        if header.request_id in session.expired:
            raise BadRequest("its result was not fetched in time", "result_expired")
        self._refuse_when_stopping()
        sampler = self._find_sampler(session, header.sampler_id)
        check_sample(header)
        size = _size(message.frames)
        self._check_size(size, 1)
        if session.num_waiting >= self._config.lane_requests:
            raise Busy(f"{session.num_waiting} requests of the session wait")
        self._check_bytes(session, size)
        work = self._enter(session, None, header)
        work.sampler = sampler
        sampler.num_pending += 1
        work.reserved = size
        session.waiting_bytes += size
        self._books.total_bytes += size
        self._take(work, message, header, size)

    def create_sampler(
        self, session: Session, message: ClientMessage, header: CreateSampler
    ) -> None:
        """A sampler on a base model or on saved weights."""
        if header.request_id in session.requests:
            self._answer_again(session, session.requests[header.request_id], header.request_id)
            return
        known = self._books.samplers.get(header.sampler_id)
        if known is not None and known.create is not None and known.create[0].sampler_id:
            asked = (known.create[0].base_model, known.create[0].model_path)
            is_same = known.session is session and known.phase is Phase.OPEN
            if is_same and asked == (header.base_model, header.model_path):
                result = {"sampler_id": known.sampler_id, "base_model": known.base_model}
                self._books.reply(session, header.request_id, result)
                return
        self._refuse_when_stopping()
        model = check_sampler(self._books, session, header)
        if session.num_waiting >= self._config.lane_requests:
            raise Busy(f"{session.num_waiting} requests of the session wait")
        sampler = self._open_sampler(session, header.sampler_id, "")
        sampler.base_model = model
        if header.model_path:
            sampler.model_path = header.model_path
            sampler.saved = self._books.catalog.find(header.model_path, session.tenant).created
        sampler.create = (header, message.frames)
        work = self._enter(session, None, header)
        work.sampler, work.model = sampler, model
        self._take(work, message, header, 0)

    def close_sampler(self, session: Session, message: ClientMessage, header: CloseSampler) -> None:
        """No new samples; the worker forgets it when the last accepted one is done."""
        sampler = self._books.samplers.get(header.sampler_id)
        if sampler is not None and sampler.session is session:
            was_open = sampler.phase is Phase.OPEN
            self._outcomes.drop_sampler(sampler, "cancelled", "its sampler was closed")
            if was_open and not sampler.num_pending:
                self._outcomes.withdraw_sampler(sampler)
        self._books.reply(session, header.request_id, {})

    def close_run(self, session: Session, message: ClientMessage, header: CloseRun) -> None:
        """Unfinished commands are cancelled, the worker forgets the run."""
        run = find_run(self._books, session, header.run_id)
        if not run.code:
            self._dispatcher.end_run(run, "cancelled", f"run {run.run_id} was closed")
        self._books.reply(session, header.request_id, {})

    def cancel(self, session: Session, message: ClientMessage, header: Cancel) -> None:
        """Withdraw a request that no worker has."""
        work = session.requests.get(header.target_id)
        if work is None:
            raise BadRequest(f"no unfinished request {header.target_id}", "not_found")
        if work.is_waiting:
            self._dispatcher.unqueue(work)
            self._outcomes.failed(work, "cancelled", "withdrawn by the client")
        elif work.code != "cancelled":  # otherwise this is a repeat
            raise BadRequest(f"request {header.target_id} has started", "too_late")
        self._books.reply(session, header.request_id, {})

    def _take(
        self,
        work: Work,
        message: ClientMessage,
        header: Command | CreateSampler | Sample,
        size: int,
    ) -> None:
        """Add a part; what is whole goes on."""
        part = header.part if type(header) is ForwardBackward else 0
        digest = b"" if isinstance(header, CreateSampler) else header.digest
        work.add_part(part, digest, message.frames, size, header)
        if work.size > work.reserved:
            self._reserve(work, work.size)
        if work.missing:
            return
        work.arrived = self._books.now
        if work.run is None:
            work.state = State.QUEUED
            self._outcomes.ready.append(work)
            return
        if work.reserved != work.size:
            self._reserve(work, work.size)
        self._answers.persist(Accepted(work.run.run_id, work.seq, work.parts))
        self._outcomes.release(work.run)

    def _again(
        self, session: Session, work: Work, message: ClientMessage, header: Command | Sample
    ) -> None:
        """A number or id that is known: the missing part of a call, a repeat, or a conflict."""
        part = header.part if type(header) is ForwardBackward else 0
        if not 0 <= part < len(work.digests) or type(header) is not type(work.header):
            raise BadRequest(f"request {header.request_id} differs from an earlier one", "conflict")
        digest = work.digests[part]
        if digest is None:
            if work.state is State.HELD:  # otherwise the call has failed without this part
                self._next_part(session, work, message, header)
        elif digest is not None and digest != header.digest:
            raise BadRequest("the same number was used with other content", "conflict")
        else:
            self._answer_again(session, work, header.request_id)

    def _next_part(
        self, session: Session, work: Work, message: ClientMessage, header: Command | Sample
    ) -> None:
        size = _size(message.frames)
        try:
            self._check_size(size, 1)
            if work.session is not session or work.request_id != header.request_id:
                raise BadRequest("the parts of a call have different request ids", "conflict")
            if not isinstance(header, ForwardBackward) or work.run is None:
                raise BadRequest("only forward_backward has parts", "conflict")
            if header.num_parts != len(work.digests):
                raise BadRequest("the parts of a call differ in their number", "conflict")
            check_command(self._books, session, work.run, header)
        except BadRequest as error:
            self._outcomes.failed(work, error.code, str(error))
            return
        self._take(work, message, header, size)

    def _answer_again(self, session: Session, work: Work, request_id: int) -> None:
        """Answer a repeat from memory, or let it wait for the outcome too."""
        asker = (session, request_id)
        is_known = asker == (work.session, work.request_id) or asker in work.also
        if work.state is State.FINISHED:
            self._answers.deliver(session, request_id, work)
        elif not is_known:
            if request_id in session.requests or len(work.also) >= ASKERS:
                raise BadRequest(f"request id {request_id} is taken", "conflict")
            work.also = (*work.also, asker)
            session.requests[request_id] = work

    def _enter(
        self, session: Session, run: Run | None, header: Request, num_parts: int = 1
    ) -> Work:
        """Begin to remember a request that waits."""
        work = Work(session, header, run.lane if run is not None else session.lane, num_parts)
        session.requests[header.request_id] = work
        session.num_waiting += 1
        if run is not None and isinstance(header, Command):
            work.run, work.seq = run, header.seq
            run.log.add(work)
            run.last_used = self._books.now
            if run.session.is_ended:
                run.session = session
                session.runs.add(run.run_id)
        return work

    def _use_up(self, session: Session, run: Run, header: Command, error: BadRequest) -> None:
        """Refuse a command for good: its number is used up, and its failure remembered."""
        num_parts = header.num_parts if isinstance(header, ForwardBackward) else 1
        work = self._enter(session, run, header, max(1, min(num_parts, self._config.parts)))
        part = header.part if isinstance(header, ForwardBackward) else 0
        work.digests[part if 0 <= part < len(work.digests) else 0] = header.digest
        self._outcomes.failed(work, error.code, str(error))

    def _new_run(self, session: Session, header: Command) -> Run:
        if not isinstance(header, CreateRun):
            return find_run(self._books, session, header.run_id)
        self._refuse_when_stopping()
        check_run_id(session, header.run_id)
        if header.run_id in self._books.runs:
            raise AssertionError("another tenant's run under the id of this session")
        self._check_runs(session)
        run = self._books.runs[header.run_id] = Run(session, header)
        session.runs.add(run.run_id)
        return run

    def _add_fork(self, session: Session, source: Run, header: ForkRun) -> Run:
        """Enter the run that a fork will make; its number 0 is used up."""
        create = replace(
            source.header, run_id=header.new_run_id, user_metadata=header.user_metadata
        )
        run = self._books.runs[header.new_run_id] = Run(session, create)
        run.forked_from = source.run_id
        run.log.begin_at_one()
        run.last_used = self._books.now
        session.runs.add(run.run_id)
        return run

    def _check_runs(self, session: Session) -> None:
        """Raise Busy when no further run may be opened."""
        if len(session.runs) >= self._config.runs:
            raise Busy(f"{len(session.runs)} runs of this session are open")
        own = [run for run in self._books.runs.values() if run.tenant == session.tenant]
        if sum(not run.code for run in own) >= self._config.tenant_runs:
            raise Busy(f"{self._config.tenant_runs} runs of the tenant are open")
        if len(self._books.runs) - len(self._books.ended_runs) >= self._config.total_runs:
            raise Busy(f"{self._config.total_runs} runs are open")

    def _open_sampler(self, session: Session, sampler_id: str, run_id: str) -> Sampler:
        check_sampler_id(self._books, session, sampler_id)
        sampler = self._books.samplers[sampler_id] = Sampler(sampler_id, session)
        sampler.run_id = run_id
        session.samplers.add(sampler_id)
        return sampler

    def _find_sampler(self, session: Session, sampler_id: str) -> Sampler:
        sampler = self._books.samplers.get(sampler_id)
        if sampler is None or sampler.tenant != session.tenant:
            raise BadRequest(f"no sampler {sampler_id[:80]!r}", "not_found")
        if sampler.phase is Phase.LOST:
            raise WeftError(sampler.detail, "run_lost")
        return sampler

    def _refuse_when_stopping(self) -> None:
        if self._books.is_stopping:
            raise WeftError("the server is shutting down", "stopping")

    def _check_size(self, size: int, num_parts: int) -> None:
        config = self._config
        if not 1 <= num_parts <= config.parts:
            raise BadRequest(f"{num_parts} parts, not 1 to {config.parts}", "too_large")
        if size > config.part_bytes + config.header_bytes:
            raise BadRequest(f"a part of {size} bytes, at most {config.part_bytes}", "too_large")
        # Early numbers take at most half of the credit, so a call of the other half always fits.
        if size * num_parts > config.lane_bytes // 2:
            detail = f"a call of about {size * num_parts} bytes, at most {config.lane_bytes // 2}"
            raise BadRequest(detail, "too_large")

    def _check_room(self, session: Session, run: Run, seq: int, size: int) -> None:
        """Raise Busy when queues are full. Early numbers get half, so the next one always fits."""
        share = 1.0
        if seq > run.log.next_seq:
            share = 0.5
            if run.log.num_held >= self._config.held_commands:
                raise Busy(f"{run.log.num_held} commands of the run wait for earlier ones")
        if session.num_waiting >= self._config.lane_requests * share:
            raise Busy(f"{session.num_waiting} requests of the session wait")
        self._check_bytes(session, size, share)

    def _check_bytes(self, session: Session, size: int, share: float = 1.0) -> None:
        if session.waiting_bytes + size > self._config.lane_bytes * share:
            raise Busy(f"{session.waiting_bytes} bytes of the session wait")
        if self._books.total_bytes + size > self._config.total_bytes * share:
            raise Busy(f"{self._books.total_bytes} bytes of all sessions wait")

    def _reserve(self, work: Work, size: int) -> None:
        more = size - work.reserved
        work.session.waiting_bytes += more
        self._books.total_bytes += more
        work.reserved = size


def _size(frames: Frames) -> int:
    return sum(map(len, frames))
