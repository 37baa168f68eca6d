"""Outcomes on their way to clients: durable first, then sent, then kept until acknowledged."""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import cast

from ...client.messages import Failure, Reply
from ...client.wire import decode
from .books import Books
from .events import Persist, ToClient
from .journal import Outcome, Record
from .sessions import Session
from .work import Part, State, Work

ANSWER_BYTES = 1000  # what an answer takes here beside its frames, about


class Answers:
    """Gives every request one outcome, and remembers it as long as somebody may ask again."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._number = 0  # of the last record
        self._unpersisted: deque[tuple[int, Work]] = deque()
        self._total_bytes = 0  # of kept answers

    def persist(self, record: Record) -> int:
        """Hand a record to the journal and return its number."""
        self._number += 1
        self._books.actions.append(Persist(self._number, record))
        return self._number

    def settle(self, work: Work, answer: Sequence[Part], record: Record | None = None) -> None:
        """Give a request its outcome. It is answered once the journal has the record.

        A command's record is its outcome; other requests have none unless one is given.
        """
        self.leave_queue(work)
        work.parts = []
        work.state = State.SETTLED
        work.answer = answer
        if work.run is not None:
            record = Outcome(work.run.run_id, work.seq, work.code)
        if record is None:
            self._finish(work)
        else:
            self._unpersisted.append((self.persist(record), work))

    def fail(self, work: Work, code: str, detail: str) -> None:
        """Give a request the outcome that it failed. `busy` is remembered for commands only."""
        if work.run is None and code == "busy":
            self.leave_queue(work)
            self.give_back(work, detail)
            return
        failure = self._books.failure(work.request_id, code, detail)
        if code == "busy":  # its number is used up: it cannot be sent again
            failure = replace(failure, retry_after_s=0.0)
        self.settle(work, [(failure, ())])

    def give_back(self, work: Work, detail: str) -> None:
        """Answer `busy` and forget the request: it may be sent again."""
        work.state = State.FORGOTTEN
        self._books.metrics.outcome(work.header.kind, "busy")
        for session, request_id in [(work.session, work.request_id), *work.also]:
            session.requests.pop(request_id, None)
            self._books.refuse(session, request_id, "busy", detail)

    def leave_queue(self, work: Work) -> None:
        """Count a request as no longer waiting, and its payload as no longer held."""
        state = work.state
        if state is State.QUEUED or state is State.HELD:
            work.session.num_waiting -= 1
            if state is State.HELD and work.run is not None:
                work.run.log.num_held -= 1
        if work.reserved:
            work.session.waiting_bytes -= work.reserved
            self._books.total_bytes -= work.reserved
            work.reserved = 0

    def persisted(self, number: int) -> None:
        """Answer what the journal now has."""
        waiting = self._unpersisted
        while waiting and waiting[0][0] <= number:
            self._finish(waiting.popleft()[1])

    def deliver(self, session: Session, request_id: int, work: Work) -> None:
        """Send a finished request's answer, if the session is connected."""
        if session.peer is None:
            return
        session.last_sent = self._books.now
        for part in work.answer:
            header, frames = part if request_id == work.request_id else _readdress(part, request_id)
            self._books.actions.append(ToClient(session.peer, header, frames))

    def acknowledge(self, session: Session, request_ids: Iterable[int]) -> None:
        """Forget answers that have arrived."""
        for request_id in request_ids:
            work = session.requests.get(request_id)
            if work is not None and work.state is State.FINISHED:
                del session.requests[request_id]
                if work.session is session and work.request_id == request_id:
                    self.forget(work)

    def forget(self, work: Work) -> None:
        """Drop a finished request; its number or id stays used up."""
        session = work.session
        if session.kept.pop(work, None) is not None:
            session.result_bytes -= work.answer_bytes
            self._total_bytes -= work.answer_bytes
        session.requests.pop(work.request_id, None)
        for other, request_id in work.also:
            other.requests.pop(request_id, None)
        work.state = State.FORGOTTEN
        if work.run is not None:
            work.run.log.forget(work, work.code)
        work.answer = ()

    @property
    def has_unpersisted(self) -> bool:
        """Whether an outcome waits for the journal."""
        return bool(self._unpersisted)

    def close(self, session: Session) -> None:
        """Forget what is kept for a session that has ended."""
        for work in list(session.kept):
            self.forget(work)

    def expire(self) -> None:
        """Drop answers that nobody has acknowledged for too long."""
        for session in self._books.sessions.by_id.values():
            while session.kept:
                work, until = next(iter(session.kept.items()))
                if until > self._books.now:
                    break
                self._expire(work)

    def check_integrity(self) -> None:
        """Raise AssertionError when the books contradict each other."""
        sessions = self._books.sessions.by_id.values()
        assert self._total_bytes == sum(session.result_bytes for session in sessions)
        assert all(work.state is State.SETTLED for _, work in self._unpersisted)
        kept = [work for session in sessions for work in session.kept]
        assert all(work.state is State.FINISHED for work in kept)
        assert self._books.total_bytes == sum(session.waiting_bytes for session in sessions)

    def _finish(self, work: Work) -> None:
        work.state = State.FINISHED
        session = work.session
        metrics = self._books.metrics
        metrics.outcome(work.header.kind, work.code)
        if work.code:
            self._books.failures.add(work.code, session.tenant, work.ids())
        if work.arrived:  # otherwise it was never whole, or was answered at once
            metrics.took(work.header.kind, self._books.now - work.arrived)
        self.deliver(session, work.request_id, work)
        for other, request_id in work.also:
            self.deliver(other, request_id, work)
        if session.is_ended:
            self.forget(work)
            return
        size = ANSWER_BYTES + sum(sum(map(len, frames)) for _, frames in work.answer)
        work.answer_bytes = size
        session.kept[work] = self._books.now + self._books.config.result_ttl_s
        session.result_bytes += size
        self._total_bytes += size
        if session.result_bytes > self._books.config.result_bytes:
            self._shrink(session, self._books.config.result_bytes)
        while self._total_bytes > self._books.config.total_result_bytes:
            largest = max(self._books.sessions.by_id.values(), key=lambda s: s.result_bytes)
            self._shrink(largest, largest.result_bytes - 1)

    def _shrink(self, session: Session, max_bytes: int) -> None:
        while session.result_bytes > max_bytes:
            self._expire(next(iter(session.kept)))

    def _expire(self, work: Work) -> None:
        if work.run is None:
            work.session.expire(work.request_id)
        self.forget(work)


def _readdress(part: Part, request_id: int) -> Part:
    """The same part of an answer, for another request of the same command."""
    header, frames = part
    if header is None:
        header, frames = decode(cast(bytes, frames[0])), frames[1:]
    if isinstance(header, Reply | Failure):
        header = replace(header, request_id=request_id)
    return header, frames
