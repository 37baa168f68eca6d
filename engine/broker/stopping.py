"""How a broker ends: what waits is refused, what has started may finish, within bounds.

Commands of runs change state that a client counts on, so they have `stop_s`. Samples change
nothing and can be drawn again, with the same seed, elsewhere: they have `stop_samples_s`, then they
are withdrawn and answer `stopping`.
"""

from ...client.worker_messages import Stop
from .answers import Answers
from .books import Books
from .dispatching import Dispatcher
from .events import Finished, ToWorker
from .outcomes import Outcomes

DETAIL = "the server is shutting down"


class Stopping:
    """Decides what still happens once the broker was asked to stop."""

    def __init__(
        self, books: Books, answers: Answers, outcomes: Outcomes, dispatcher: Dispatcher
    ) -> None:
        self._books = books
        self._answers = answers
        self._outcomes = outcomes
        self._dispatcher = dispatcher
        self._samples_by = 0.0
        self.is_finished = False

    def request(self) -> None:
        """Refuse what waits, and begin to wait for the rest."""
        books = self._books
        if books.is_stopping:
            return
        books.is_stopping = True
        books.stop_by = books.now + books.config.stop_s
        self._samples_by = books.now + books.config.stop_samples_s
        books.note("stopping", "", {})
        for session in list(books.sessions.by_id.values()):
            for work in list(session.requests.values()):
                if work.is_waiting:
                    self._dispatcher.unqueue(work)
                    self._outcomes.failed(work, "stopping", DETAIL)

    def proceed(self) -> None:
        """Give up what is late; stop the workers once nothing dispatched is unfinished."""
        books = self._books
        if not books.is_stopping or self.is_finished:
            return
        if books.now >= self._samples_by:
            for worker in books.workers:
                self._dispatcher.withdraw_samples(worker, "stopping", DETAIL)
        is_busy = any(worker.dispatched for worker in books.workers) or books.num_jobs
        if books.now < books.stop_by and (is_busy or self._answers.has_unpersisted):
            return
        self.is_finished = True
        for worker in list(books.workers):
            books.actions.append(ToWorker(worker.peer, Stop()))
            self._dispatcher.abandon(worker, "stopping", DETAIL)
        books.actions.append(Finished())
