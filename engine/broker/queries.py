"""Answers to `Query`: what the broker's books say, to the tenant who asks."""

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from ...client.errors import BadRequest
from ...client.messages import Query
from ...client.waiting import describe_phase
from .books import Books
from .holdings import Holdings
from .key_book import OPERATOR
from .leases import Worker
from .measuring import measure
from .paging import cut, page
from .sessions import Session


class Queries:
    """Reads the books; changes nothing."""

    def __init__(self, books: Books) -> None:
        self._books = books
        holdings = Holdings(books)
        self._topics: dict[str, Callable[[Session, Query], dict[str, Any]]] = {
            "capabilities": self._capabilities,
            "runs": holdings.runs,
            "run": holdings.run,
            "checkpoints": holdings.checkpoints,
            "sessions": holdings.sessions,
            "session": holdings.session,
            "sampler": holdings.sampler,
            "status": self._status,
            "metrics": lambda session, query: measure(books, self.state()),
        }

    def answer(self, session: Session, query: Query) -> dict[str, Any]:
        """The result of a query.

        Raises:
            BadRequest: no such topic, or the subject is missing.
            NotFound: the subject does not exist, or is another tenant's.
        """
        topic = self._topics.get(query.what)
        if topic is None:
            known = ", ".join(self._topics)
            raise BadRequest(f"query of {query.what[:80]!r}; there are {known}")
        for name in ("offset", "limit"):
            if getattr(query, name) < 0:
                raise BadRequest(f"{name} is {getattr(query, name)}")
        return topic(session, query)

    def state(self) -> str:
        """ "ready" when a worker is, else "loading" or "failed"; at the end "stopping"."""
        if self._books.is_stopping:
            return "stopping"
        if self._books.workers.models():
            return "ready"
        return "loading" if self._books.workers.are_loading() else "failed"

    def _capabilities(self, session: Session, query: Query) -> dict[str, Any]:
        models = [asdict(card) for card in self._books.workers.models()]
        workers = [worker for worker in self._books.workers if worker.model is None]
        loading = [{"phase": worker.phase, "fraction": worker.fraction} for worker in workers]
        return {"models": models, "state": self.state(), "loading": loading}

    def _status(self, session: Session, query: Query) -> dict[str, Any]:
        books = self._books
        common = {
            "state": self.state(),
            "detail": books.workers.awaited or books.workers.ended,
            "models": [asdict(card) for card in books.workers.models()],
            "sessions": len(books.sessions),
            "workers": [_describe_worker(worker) for worker in books.workers],
        }
        if session.tenant == OPERATOR:
            tenants, rest = cut(self._sums(), dict, query)
            return {**common, "tenants": tenants, **rest}
        own = [work for work in session.requests.values() if work.session is session]
        mine: dict[str, int] = {}
        for work in own:
            mine[work.state.value] = mine.get(work.state.value, 0) + 1
        tenant = [s for s in books.sessions.by_id.values() if s.tenant == session.tenant]
        lanes = [
            {
                "lane": s.lane,
                "waiting": s.num_waiting,
                "waiting_bytes": s.waiting_bytes,
                "runs": len(s.runs),
                "usage": dict(s.usage),
                "user_metadata": dict(s.user_metadata),
            }
            for s in tenant
        ]
        return {**common, "requests": mine, **page("lanes", lanes, dict, query)}

    def _sums(self) -> list[dict[str, Any]]:
        """What each tenant has and uses, for the operator: sums over its sessions, no ids."""
        found: dict[str, list[Session]] = {}
        for session in self._books.sessions.by_id.values():
            if session.tenant != OPERATOR:
                found.setdefault(session.tenant, []).append(session)
        return [
            {
                "tenant": tenant,
                "sessions": len(own),
                "waiting": sum(session.num_waiting for session in own),
                "waiting_bytes": sum(session.waiting_bytes for session in own),
                "runs": sum(len(session.runs) for session in own),
                "usage": dict(sum((session.usage for session in own), Counter[str]())),
            }
            for tenant, own in sorted(found.items())
        ]


def _describe_worker(worker: Worker) -> dict[str, Any]:
    return {
        "worker_id": worker.worker_id,
        "pid": worker.pid,
        "model": worker.model.name if worker.model is not None else "",
        "state": "loading" if worker.model is None else "ready",
        "progress": describe_phase(worker.phase, worker.fraction) if worker.model is None else "",
        "runs": len(worker.runs),
        "samplers": len(worker.samplers),
        "dispatched": len(worker.dispatched),
        "queued": len(worker.train.lanes) + len(worker.sample.lanes),
        "train_outstanding": worker.train.outstanding,
        "train_credit": worker.train.credit,
        "sample_outstanding": worker.sample.outstanding,
        "sample_credit": worker.sample.credit,
    }
