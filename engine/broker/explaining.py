"""Why a request is not answered yet, from the broker's books: one reason, at a fixed cost.

Of other tenants and sessions a reason tells how many there are and how much of theirs waits, never
who they are or what they sent.
"""

from ...client.waiting import Reason, describe_phase
from .books import Books
from .leases import Window, Worker
from .sessions import Session
from .work import State, Work

MAX_DETAIL = 300  # characters, so that the reasons of one answer fit into its header


def explain(books: Books, session: Session, request_id: int) -> Reason:
    """Why a request of this session waits; a session has no other requests."""
    work = session.requests.get(request_id)
    if work is None:
        return Reason(code="unknown", detail="the server does not know it, or not any more")
    return _explain(books, work)


def unserved(books: Books) -> Reason:
    """Why no worker takes what needs no more than a base model."""
    workers = books.workers
    loading = [worker for worker in workers if worker.model is None]
    if loading:
        furthest = max(loading, key=lambda worker: worker.fraction)
        before = f"{workers.awaited}; " if workers.awaited else ""
        phase = describe_phase(furthest.phase, furthest.fraction)
        detail = f"{before}the model is being loaded: {phase}"
        return Reason(code="loading", detail=detail, fraction=furthest.fraction)
    if workers.awaited:
        return Reason(code="restarting", detail=workers.awaited)
    return Reason(code="no_worker", detail="no worker has connected yet")


def _explain(books: Books, work: Work) -> Reason:
    match work.state:
        case State.HELD:
            return _held(books, work)
        case State.QUEUED if work.window is not None:
            return _queued(work, work.window)
        case State.QUEUED if work.model or work.sampler is None or work.sampler.worker is None:
            return unserved(books)
        case State.QUEUED:
            return Reason(code="opening", detail="its sampler is being opened")
        case State.DISPATCHED if work.worker is not None:
            return _dispatched(books, work, work.worker)
        case State.STORING:
            return Reason(code="storing", detail="the store of checkpoints works on it")
        case State.SETTLED:
            return Reason(code="recording", detail="it is done, and its outcome is being written")
        case _:
            return Reason(code="answered", detail="its answer is on its way")


def _held(books: Books, work: Work) -> Reason:
    done, total = _parts(work)
    if work.missing or work.run is None:
        detail = f"{done} of its {total} parts have come"
        return Reason(code="parts", detail=detail, done=done, total=total)
    seq = work.run.log.next_seq
    due = work.run.log.commands.get(seq)
    if due is None:
        detail = f"number {seq} of its run has not come"
        return Reason(code="number", detail=detail, seq=seq)
    if due.missing:
        done, total = _parts(due)
        detail = f"of number {seq} of its run {done} of {total} parts have come"
        return Reason(code="number", detail=detail, seq=seq, done=done, total=total)
    first = work.run.log.awaited or work.run.log.commands.get(0)
    why = "" if first is None else f": {_explain(books, first).detail}"
    if first is not None and first.fork is not None:
        detail = f"number {first.seq} of its run makes a fork first{why}"
        return Reason(code="forking", detail=detail[:MAX_DETAIL], seq=first.seq)
    return Reason(code="opening", detail=f"its run is being opened{why}"[:MAX_DETAIL])


def _queued(work: Work, window: Window) -> Reason:
    place, ahead, sessions = window.lanes.place(work.lane, work.ticket)
    if place == 1 and not ahead:
        holder = work.run or work.sampler
        worker = holder.worker if holder is not None else None
        busy = _count(len(worker.dispatched) if worker is not None else 0)
        detail = f"it is next; the worker has {busy} under way, and takes more as they end"
        return Reason(code="credit", detail=detail, place=1, ahead=0, sessions=0)
    detail = f"{_ordinal(place)} in your lane"
    if ahead:
        others = f"{sessions} other session{'s' if sessions > 1 else ''}"
        detail += f", up to {_count(ahead)} of {others} ahead"
    return Reason(code="queued", detail=detail, place=place, ahead=ahead, sessions=sessions)


def _dispatched(books: Books, work: Work, worker: Worker) -> Reason:
    done, total = work.progress
    if books.is_stopping:
        left = f"{max(0.0, books.stop_by - books.now):.0f} s"
        detail = f"the server is shutting down; it waits {left} more for what has started"
        return Reason(code="stopping", detail=detail, done=done, total=total)
    silent_s = books.now - worker.last_heard
    is_silent = silent_s >= 2 * books.config.heartbeat_s
    silent = f"; nothing was heard of it for {silent_s:.0f} s" if is_silent else ""
    if total > 0:
        detail = f"the worker has computed {done} of its {total} units{silent}"
        return Reason(code="running", detail=detail, done=done, total=total)
    others = len(worker.dispatched) - 1
    beside = f"{_count(others)} beside it" if others else "nothing else"
    detail = f"the worker has it, and {beside}{silent}"
    return Reason(code="dispatched", detail=detail)


def _parts(work: Work) -> tuple[int, int]:
    total = len(work.digests)
    return total - work.missing, total


def _count(number: int) -> str:
    return f"{number} request{'' if number == 1 else 's'}"


def _ordinal(number: int) -> str:
    is_teen = number % 100 in (11, 12, 13)
    ending = "th" if is_teen else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
