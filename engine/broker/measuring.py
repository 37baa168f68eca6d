"""The answer to a query of "metrics": everything that is counted, of all tenants together."""

from typing import Any

from ..histogram import SECONDS, TENANTS
from .books import Books
from .metrics import levels


def measure(books: Books, state: str) -> dict[str, Any]:
    """Counters and levels as plain data; names no tenant, session, run or worker.

    Walks over sessions, runs and workers, never over requests.
    """
    living = [worker.counters for worker in books.workers if worker.counters is not None]
    return {
        "state": state,
        "started": books.started,
        "bounds": {"seconds": list(SECONDS), "tenants": list(TENANTS)},
        **books.metrics.to_fields(),
        "work": books.metrics.work_done(living).to_fields(),
        "memory": levels(living),
        "levels": _levels(books),
    }


def _levels(books: Books) -> dict[str, int]:
    sessions = books.sessions.by_id.values()
    held = sum(run.log.num_held for run in books.runs.values())
    ready = sum(worker.model is not None for worker in books.workers)
    return {
        "held": held,
        "queued": sum(session.num_waiting for session in sessions) - held,
        "dispatched": sum(len(worker.dispatched) for worker in books.workers),
        "storing": books.num_jobs,
        "sessions": len(books.sessions),
        "connected_sessions": len(books.sessions.by_peer),
        "runs": len(books.runs) - len(books.ended_runs),
        "samplers": len(books.samplers),
        "watchers": len(books.sessions.watchers),
        "checkpoints": len(books.catalog),
        "waiting_bytes": books.total_bytes,
        "kept_bytes": sum(session.result_bytes for session in sessions),
        "ready_workers": ready,
        "loading_workers": len(list(books.workers)) - ready,
    }
