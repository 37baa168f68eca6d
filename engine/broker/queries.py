"""Answers to `Query`: what the broker's books say, to the tenant who asks."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import msgpack

from ...client.errors import BadRequest, NotFound
from ...client.messages import Query
from ...client.waiting import describe_phase
from ..files.checkpoint import Checkpoint
from .books import Books
from .checks import find_run
from .leases import Phase, Run, Worker
from .measuring import measure
from .sessions import Session

T = TypeVar("T")

PAGE_BYTES = 40_000  # of one list, below the limit of a header
ENTRY_BYTES = 8_000  # beyond it an entry of a list is told without its metadata


class Queries:
    """Reads the books; changes nothing."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._topics: dict[str, Callable[[Session, Query], dict[str, Any]]] = {
            "capabilities": self._capabilities,
            "runs": self._runs,
            "run": self._run,
            "checkpoints": self._checkpoints,
            "sampler": self._sampler,
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
        if query.offset < 0:
            raise BadRequest(f"offset is {query.offset}")
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

    def _runs(self, session: Session, query: Query) -> dict[str, Any]:
        runs = [run for run in self._books.runs.values() if run.tenant == session.tenant]
        return _page("runs", runs[::-1], self._describe, query.offset)

    def _run(self, session: Session, query: Query) -> dict[str, Any]:
        return self._describe(find_run(self._books, session, query.subject))

    def _checkpoints(self, session: Session, query: Query) -> dict[str, Any]:
        """Of all runs, of the run `subject`, or the one whose path is `subject`."""
        catalog = self._books.catalog
        if query.subject.startswith("weft://"):
            found = [catalog.find(query.subject, session.tenant)]
        else:
            found = catalog.of(session.tenant, query.subject)
        return _page("checkpoints", found, Checkpoint.fields, query.offset)

    def _sampler(self, session: Session, query: Query) -> dict[str, Any]:
        sampler = self._books.samplers.get(query.subject)
        if sampler is None or sampler.tenant != session.tenant:
            raise NotFound(f"no sampler {query.subject[:80]!r}")
        return {
            "sampler_id": sampler.sampler_id,
            "base_model": sampler.base_model,
            "model_path": sampler.model_path,
            "run_id": sampler.run_id,
            "state": sampler.phase.value,
        }

    def _status(self, session: Session, query: Query) -> dict[str, Any]:
        books = self._books
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
        return {
            "state": self.state(),
            "detail": books.workers.awaited or books.workers.ended,
            "models": [asdict(card) for card in books.workers.models()],
            "sessions": len(books.sessions),
            "workers": [_describe_worker(worker) for worker in books.workers],
            "requests": mine,
            **_page("lanes", lanes, dict, query.offset),
        }

    def _describe(self, run: Run) -> dict[str, Any]:
        header = run.header
        return {
            "run_id": run.run_id,
            "session_id": run.session.session_id,
            "base_model": header.base_model,
            "rank": header.rank,
            "alpha": header.alpha,
            "seed": header.seed,
            "train_attn": header.train_attn,
            "train_mlp": header.train_mlp,
            "train_unembed": header.train_unembed,
            **run.info,
            "state": run.phase.value,
            "is_lost": run.phase is Phase.LOST,
            "detail": run.detail,
            "next_seq": run.log.next_seq,
            "last_request_time": run.last_used + self._books.wall_offset,
            "forked_from": run.forked_from,
            "user_metadata": header.user_metadata,
        }


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


def _page(
    name: str, things: Sequence[T], describe: Callable[[T], dict[str, Any]], offset: int
) -> dict[str, Any]:
    """As many entries from `offset` on as fit into an answer, and where to go on, or -1.

    Among several, an entry of much metadata is told without it, and says so in "omitted".
    """
    page: list[dict[str, Any]] = []
    room = PAGE_BYTES
    most = ENTRY_BYTES if len(things) > 1 else PAGE_BYTES
    for index in range(offset, len(things)):
        entry = describe(things[index])
        size = len(msgpack.packb(entry))
        if size > most and "user_metadata" in entry:
            entry = {**entry, "user_metadata": {}, "omitted": "user_metadata"}
            size = len(msgpack.packb(entry))
        if size > room and page:
            return {name: page, "next": index}
        room -= size
        page.append(entry)
    return {name: page, "next": -1}
