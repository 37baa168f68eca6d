"""Which worker does what, and when: placement, fair lanes under credit, and the loss of workers."""

from ...client.errors import BadRequest
from ...client.limits import limit
from ...client.messages import (
    Command,
    CreateRun,
    ForkRun,
    Sample,
    SaveForSampler,
)
from ...client.worker_messages import Dispatch, Done, Failed, Underway, Withdraw, WorkerReady
from .answers import Answers
from .books import Books
from .checks import check_base
from .events import Frames, ToWorker, WorkerLost
from .journal import Placed
from .leases import Phase, Run, Sampler, Window, Worker
from .outcomes import Outcomes
from .sessions import Session
from .work import State, Work

MAX_IDS = limit("request_ids")


class Dispatcher:
    """Hands queued requests to workers and takes their answers."""

    def __init__(self, books: Books, answers: Answers, outcomes: Outcomes) -> None:
        self._books = books
        self._answers = answers
        self._outcomes = outcomes
        self._last_id = 0
        self.waiting: list[Work] = []  # for a worker that serves their model

    def submit(self, work: Work) -> None:
        """Queue a request for the worker that holds its run or sampler, or for the best one."""
        if work.state is not State.QUEUED:
            return
        holder = work.run or work.sampler
        if work.model:
            worker = self._books.workers.place(work.model)
            if worker is None:
                self._wait(work)
                return
            if isinstance(work.header, CreateRun) and worker.model is not None:
                try:
                    check_base(work.header, work.model, worker.model)
                except BadRequest as error:  # no worker could tell before
                    self._outcomes.failed(work, error.code, str(error))
                    return
            self._assign(work, worker)
        elif isinstance(holder, Sampler) and holder.phase is Phase.OPENING:
            holder.waiting.append(work)
            return
        elif holder is not None and holder.worker is not None:
            worker = holder.worker
        else:
            self._outcomes.failed(work, "run_lost", "the worker that held it is gone")
            return
        window = worker.train if work.run is not None else worker.sample
        if worker.model is not None:
            work.weigh(worker.model)
        work.window = window
        if window.takes_at_once(work.weight):
            self._dispatch(worker, work)
            return
        work.ticket = window.lanes.push(work.lane, work, work.weight)
        self._pump(worker, window)

    def unqueue(self, work: Work) -> None:
        """Take a queued request out of wherever it waits."""
        if work.window is not None:
            work.window.lanes.remove(work.lane, work)
            work.window = None
        elif work in self.waiting:
            self.waiting.remove(work)
        elif work.sampler is not None and work in work.sampler.waiting:
            work.sampler.waiting.remove(work)

    def ready(self, worker: Worker, header: WorkerReady) -> None:
        """A worker has loaded: give it what waited."""
        worker.model, worker.sites = header.model, header.sites
        self._books.workers.awaited = ""
        worker.train.credit = header.train_credit
        worker.sample.credit = header.sample_credit
        fields = {"worker_id": worker.worker_id, "model": header.model.name}
        self._books.note("worker_ready", "", fields)
        self.place_waiting()
        for window in (worker.train, worker.sample):
            self._pump(worker, window)

    def place_waiting(self) -> None:
        """Try again to place what no worker served."""
        waiting, self.waiting = self.waiting, []
        for work in waiting:
            self.submit(work)

    def done(self, worker: Worker, header: Done, frames: Frames) -> None:
        """Take one part of an answer; the whole of it is the outcome."""
        work = worker.dispatched.get(header.dispatch_id)
        if work is None or work.epoch != header.lease_epoch:
            return
        if header.part == 0:
            work.usage = header.usage
        if header.num_parts == 1:
            replies: list[Frames] = [frames]
        else:
            if work.replies is None:
                work.replies = [None] * min(header.num_parts, self._books.config.parts)
            if not 0 <= header.part < len(work.replies) == header.num_parts:
                self._finish(worker, work)
                self._outcomes.failed(work, "internal", "the worker's answer has wrong parts")
                return
            work.replies[header.part] = frames
            replies = [reply for reply in work.replies if reply is not None]
            if len(replies) < header.num_parts:
                return
            work.replies = None
        window = self._finish(worker, work)
        self._outcomes.done(work, replies)
        if window is not None:
            self._pump(worker, window)

    def failed(self, worker: Worker, header: Failed) -> None:
        """Take a failure. A full worker first gives up runs that no session keeps."""
        work = worker.dispatched.get(header.dispatch_id)
        if work is None or work.epoch != header.lease_epoch:
            return
        window = self._finish(worker, work)
        if header.code == "busy" and work.model and self._evict(worker):
            self._unassign(work)
            self._requeue(work)
        elif header.code == "busy" and type(work.header) is CreateRun:
            self._outcomes.create_later(work, header.detail)
        elif header.code == "busy" and type(work.header) is ForkRun:
            self._fork_later(worker, work, header.detail)
        else:
            self._outcomes.failed(work, header.code, header.detail)
        if window is not None:
            self._pump(worker, window)

    def lose(self, worker: Worker, detail: str) -> None:
        """A worker is gone: its runs are lost, what only needs a base model goes elsewhere."""
        self._books.workers.remove(worker)
        self._books.metrics.retire(worker.counters)
        queued = [work for window in (worker.train, worker.sample) for work in window.lanes]
        works = [*worker.dispatched.values(), *queued]
        worker.dispatched.clear()
        reason = f"worker {worker.worker_id} is gone: {detail}"
        lost = [run for run in worker.runs.values() if run.phase is Phase.OPEN]
        for run in list(worker.runs.values()):
            run.worker = None
        self._books.metrics.runs_lost += len(lost)
        for run in lost:
            self._books.end_run(run, Phase.LOST, "run_lost", reason)
        for sampler in worker.samplers.values():
            self._reopen(sampler, reason)
        for work in works:
            work.window = work.worker = None
            if _is_movable(work):
                self._requeue(work)
            else:
                self._outcomes.failed(work, "run_lost", reason)
        for run in lost:
            self._outcomes.fail_held(run, "run_lost", reason)
        self._books.note("worker_lost", "", {"worker_id": worker.worker_id, "detail": detail})
        self.place_waiting()
        self._books.actions.append(WorkerLost(worker.worker_id, detail))

    def underway(self, worker: Worker, header: Underway) -> None:
        """Note how far a worker is with what takes several steps."""
        known = worker.dispatched
        for key, done, total in zip(header.dispatch_ids, header.done, header.total, strict=False):
            if key in known:
                known[key].progress = (done, total)

    def withdraw_samples(self, worker: Worker, code: str, detail: str) -> None:
        """Fail the samples that a worker draws, and tell it to forget them."""
        works = [work for work in worker.dispatched.values() if type(work.header) is Sample]
        for work in works:
            self._finish(worker, work)
            self._outcomes.failed(work, code, detail)
        for first in range(0, len(works), MAX_IDS):
            ids = [work.dispatch_id for work in works[first : first + MAX_IDS]]
            self._send(worker, Withdraw(dispatch_ids=ids))

    def abandon(self, worker: Worker, code: str, detail: str) -> None:
        """Fail what a worker has not finished, without waiting for it."""
        for work in list(worker.dispatched.values()):
            self._finish(worker, work)
            self._outcomes.failed(work, code, detail)

    def end_run(self, run: Run, code: str, detail: str, later_code: str = "not_found") -> None:
        """Close a run: what is unfinished fails with `code`, the worker forgets it."""
        worker = run.worker
        self._books.end_run(run, Phase.CLOSED, later_code, detail)
        withdrawn, gone = [], [run.run_id]
        for work in list(run.log.commands.values()):
            if work.state is State.QUEUED:
                self.unqueue(work)
            elif work.state is State.DISPATCHED and work.worker is not None:
                withdrawn.append(work.dispatch_id)
                if work.fork is not None:  # the worker may have made it already
                    gone.append(work.fork.run_id)
                self._finish(work.worker, work)
            elif work.state is not State.HELD:
                continue
            self._outcomes.failed(work, code, detail)
        if worker is not None:
            while len(withdrawn) > MAX_IDS:  # more would not fit into a header
                self._send(worker, Withdraw(dispatch_ids=withdrawn[:MAX_IDS]))
                del withdrawn[:MAX_IDS]
            self._send(worker, Withdraw(dispatch_ids=withdrawn, run_ids=gone))
            self._pump(worker, worker.train)

    def limit_expired(self) -> None:
        """Give up the oldest runs whose session has ended, beyond the limit."""
        expired = [
            run
            for worker in self._books.workers
            for run in worker.runs.values()
            if run.session.is_ended
        ]
        for run in expired[: max(0, len(expired) - self._books.config.expired_runs)]:
            detail = "its session ended, and too many runs were kept"
            self.end_run(run, "run_lost", detail, later_code="run_lost")

    def end_session_work(self, session: Session, code: str, detail: str) -> None:
        """Fail what has not started, and withdraw the samples and samplers of a session."""
        for work in list(session.requests.values()):
            if work.session is not session:
                continue
            if work.state is State.QUEUED:
                self.unqueue(work)
            elif work.state is State.DISPATCHED and work.run is None and work.worker is not None:
                worker = work.worker
                self._finish(worker, work)
                self._send(worker, Withdraw(dispatch_ids=[work.dispatch_id]))
                self._pump(worker, worker.sample)
            elif work.state is not State.HELD:
                continue
            self._outcomes.failed(work, code, detail)
        for sampler_id in list(session.samplers):
            sampler = self._books.samplers[sampler_id]
            self._outcomes.withdraw_sampler(sampler)
            self._outcomes.drop_sampler(sampler, code, detail)

    def check_integrity(self) -> None:
        """Raise AssertionError when the books contradict each other, or a request is nowhere."""
        for session in self._books.sessions.by_id.values():
            for work in session.requests.values():
                if work.state is State.QUEUED:
                    opening = work.sampler.waiting if work.sampler is not None else []
                    assert work.window is not None or work in self.waiting or work in opening
                elif work.state is State.DISPATCHED:
                    assert work.worker is not None
                    assert work.worker.dispatched[work.dispatch_id] is work
        for work in self.waiting:
            assert work.state is State.QUEUED
            assert work.window is None
            assert self._books.workers.place(work.model) is None
        for worker in self._books.workers:
            for dispatch_id, work in worker.dispatched.items():
                assert work.state is State.DISPATCHED
                assert work.dispatch_id == dispatch_id
                assert work.worker is worker
            for window in (worker.train, worker.sample):
                assert all(work.state is State.QUEUED for work in window.lanes)

    def _wait(self, work: Work) -> None:
        if self._books.workers.are_loading():
            self.waiting.append(work)
            return
        if self._books.workers.ended and not self._books.workers.by_id:
            self._outcomes.failed(work, "no_worker", self._books.workers.ended)
            return
        served = ", ".join(repr(card.name) for card in self._books.workers.models())
        detail = f"no model {work.model!r}; served: {served or 'none'}"
        self._outcomes.failed(work, "not_found", detail)

    def _assign(self, work: Work, worker: Worker) -> None:
        if work.run is not None:
            self._lease(work.run, worker)
        elif work.sampler is not None:
            work.sampler.worker = worker
            worker.samplers[work.sampler.sampler_id] = work.sampler

    def _lease(self, run: Run, worker: Worker) -> None:
        run.worker = worker
        run.epoch += 1
        worker.runs[run.run_id] = run
        self._answers.persist(Placed(run.run_id, worker.worker_id, run.epoch))

    def _fork_later(self, worker: Worker, work: Work, detail: str) -> None:
        """A worker has no room for a fork: make some, or let the client come back."""
        fork = work.fork
        if fork is not None and fork.worker is not None:
            worker.runs.pop(fork.run_id, None)
            fork.worker = None
        if self._evict(worker):
            self._requeue(work)
        else:
            self._outcomes.fork_later(work, detail)

    def _unassign(self, work: Work) -> None:
        for holder in (work.run, work.sampler):
            if holder is not None and holder.worker is not None:
                if isinstance(holder, Run):
                    holder.worker.runs.pop(holder.run_id, None)
                else:
                    holder.worker.samplers.pop(holder.sampler_id, None)
                holder.worker = None

    def _pump(self, worker: Worker, window: Window) -> None:
        """Fill a worker's credit from its lanes."""
        while (work := window.next()) is not None:
            self._dispatch(worker, work)

    def _dispatch(self, worker: Worker, work: Work) -> None:
        self._last_id += 1
        self._answers.leave_queue(work)
        work.state = State.DISPATCHED
        work.worker = worker
        work.dispatch_id = self._last_id
        work.epoch = work.run.epoch if work.run is not None else 0
        worker.dispatched[work.dispatch_id] = work
        worker.last_sent = self._books.now
        queued_s = self._books.now - work.arrived
        self._books.metrics.waited(work.header.kind, queued_s)
        header = Dispatch(
            dispatch_id=work.dispatch_id,
            lease_epoch=work.epoch,
            lane=work.lane,
            queued_s=queued_s,
        )
        for frames in work.parts:
            self._books.actions.append(ToWorker(worker.peer, header, frames))
        if isinstance(work.header, Command) and not work.model and work.fork is None:
            work.parts = []
        if type(work.header) is SaveForSampler and work.sampler is not None:
            work.sampler.worker = worker
            worker.samplers[work.sampler.sampler_id] = work.sampler
        elif work.fork is not None and work.fork.phase is Phase.OPENING:
            self._lease(work.fork, worker)
        if self._books.tells_requests:
            self._books.note("dispatched", work.session.tenant, work.ids())

    def _finish(self, worker: Worker, work: Work) -> Window | None:
        """Take a request off a worker and give its credit back."""
        del worker.dispatched[work.dispatch_id]
        window, work.window, work.worker = work.window, None, None
        if window is not None:
            window.outstanding -= work.weight
        return window

    def _requeue(self, work: Work) -> None:
        work.progress = (-1, -1)
        if work.state is State.DISPATCHED:
            work.state = State.QUEUED
            work.session.num_waiting += 1
        work.replies = None
        self._outcomes.ready.append(work)

    def _reopen(self, sampler: Sampler, reason: str) -> None:
        sampler.worker = None
        saved = self._books.catalog.created(sampler.model_path)
        if sampler.phase is Phase.OPEN and saved not in (None, sampler.saved):
            sampler.create = None  # what is there now is not what it sampled from
            reason = f"{reason}; {sampler.model_path} was saved anew since it was opened"
        create = sampler.create
        if create is None or sampler.phase is Phase.CLOSED:
            sampler.phase = Phase.LOST if sampler.phase is Phase.OPEN else sampler.phase
            sampler.detail = reason
        elif sampler.phase is Phase.OPEN:
            sampler.phase = Phase.OPENING
            # The client's own request was answered long ago: nobody is told of this one.
            nobody = Session(sampler.session.session_id, sampler.tenant, self._books.now)
            nobody.is_ended = True
            header, frames = create
            again = Work(nobody, header, nobody.lane)
            again.sampler, again.model = sampler, sampler.base_model
            again.parts, again.missing, again.state = [frames], 0, State.QUEUED
            again.arrived = self._books.now
            self._outcomes.ready.append(again)

    def _evict(self, worker: Worker) -> bool:
        """Give up the oldest run on a worker that no session keeps; whether there was one."""
        for run in worker.runs.values():
            if run.session.is_ended and run.phase is Phase.OPEN:
                detail = "its session ended, and memory was needed"
                self.end_run(run, "run_lost", detail, later_code="run_lost")
                return True
        return False

    def _send(self, worker: Worker, header: Withdraw) -> None:
        worker.last_sent = self._books.now
        self._books.actions.append(ToWorker(worker.peer, header))


def _is_movable(work: Work) -> bool:
    """Whether another worker can serve a request from the beginning."""
    if work.run is not None:
        return bool(work.model) and not work.session.is_ended
    is_reopened = work.sampler is not None and work.sampler.create is not None
    return bool(work.model) or (type(work.header) is Sample and is_reopened)
