"""What the store is asked to do, and who waits for it."""

from collections.abc import Callable
from typing import Any

from ...client.errors import BadRequest, Busy, WeftError
from ...client.messages import Request
from ..files.jobs import Job, JobResult
from .answers import Answers
from .books import Books
from .events import StoreDone, StoreJob
from .sessions import Session
from .work import State, Work

Then = Callable[[JobResult], None]


class Storing:
    """Numbers the jobs of the store; remembers requests that one of them will answer."""

    def __init__(self, books: Books, answers: Answers) -> None:
        self._books = books
        self._answers = answers
        self._number = 0  # of the last job
        self._waiting: dict[int, Then] = {}

    def ask(self, job: Job, then: Then = lambda result: None) -> None:
        """Hand a job to the store; `then` takes its result. Jobs are done in their order."""
        self._number += 1
        self._waiting[self._number] = then
        self._books.num_jobs = len(self._waiting)
        self._books.actions.append(StoreJob(self._number, job))

    def done(self, event: StoreDone) -> None:
        """The store has answered."""
        then = self._waiting.pop(event.number)
        self._books.num_jobs = len(self._waiting)
        then(event.result)

    def is_known(self, session: Session, header: Request) -> bool:
        """Whether a request came before; its answer is sent again when there is one.

        Raises:
            BadRequest: `conflict`, its id was used for another kind of request; `result_expired`,
                it was answered too long ago.
        """
        if header.request_id in session.expired:
            raise BadRequest("its result was not fetched in time", "result_expired")
        work = session.requests.get(header.request_id)
        if work is None:
            return False
        if type(work.header) is not type(header):
            raise BadRequest(f"request id {header.request_id} is taken", "conflict")
        if work.state is State.FINISHED:
            self._answers.deliver(session, header.request_id, work)
        return True

    def begin(self, session: Session, header: Request) -> Work:
        """Remember a request until its answer is acknowledged.

        Raises:
            Busy: too many of the session wait for the store.
            WeftError: `stopping`.
        """
        if self._books.is_stopping:
            raise WeftError("the server is shutting down", "stopping")
        most = self._books.config.store_jobs
        if sum(work.state is State.STORING for work in session.requests.values()) >= most:
            raise Busy(f"{most} requests of the session wait for the store")
        work = Work(session, header, session.lane)
        work.missing, work.state, work.arrived = 0, State.STORING, self._books.now
        session.requests[header.request_id] = work
        return work

    def succeed(self, work: Work, result: dict[str, Any]) -> None:
        """Answer a request."""
        self._answers.settle(work, [(self._books.success(work.request_id, result), ())])

    def fail(self, work: Work, result: JobResult) -> None:
        """Answer a request whose job failed."""
        self._answers.fail(work, result.code, result.detail)
