"""What a tenant has, told to itself alone: runs, checkpoints, sessions and samplers.

Something is told of as long as anything of it is left: a run whose worker and session are gone has
its checkpoints, and a session its runs. Lists begin with what was used or made last.
"""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from ...client.errors import NotFound
from ...client.messages import Query
from ...client.paths import parse_path
from ..files.checkpoint import Checkpoint
from .books import Books
from .leases import Phase, Run
from .paging import PAGE_BYTES, cut, page, trimmed
from .past import PastSampler, PastSession
from .sessions import Session

LAST_BYTES = 2_000  # beyond it a run's last checkpoint is told without its metadata


class Holdings:
    """Answers queries about a tenant's own things; changes nothing."""

    def __init__(self, books: Books) -> None:
        self._books = books

    def runs(self, session: Session, query: Query) -> dict[str, Any]:
        """The runs, latest request first."""
        tenant = session.tenant
        times = {run_id: self._last_used(run_id, tenant) for run_id in self._run_ids(tenant)}
        latest = sorted(times, key=lambda run_id: (-times[run_id], run_id))
        return page("runs", latest, lambda run_id: self._describe_run(run_id, tenant), query)

    def run(self, session: Session, query: Query) -> dict[str, Any]:
        """The run `subject`; of one that never came to be, why."""
        run_id, tenant = query.subject, session.tenant
        if self._live(run_id, tenant) is None and run_id not in self._books.catalog.runs(tenant):
            raise NotFound(f"no run {run_id[:80]!r}")
        return trimmed(self._describe_run(run_id, tenant), PAGE_BYTES)

    def checkpoints(self, session: Session, query: Query) -> dict[str, Any]:
        """The checkpoints of all runs, of the run `subject`, or the one whose path is `subject`.

        By its path a public one of somebody else is told, too, without what he noted beside it.
        """
        catalog = self._books.catalog
        if not query.subject.startswith("weft://"):
            found = catalog.of(session.tenant, query.subject)
            return page("checkpoints", found, Checkpoint.fields, query)
        checkpoint = catalog.find(query.subject, session.tenant)
        fields = checkpoint.fields()
        if checkpoint.tenant != session.tenant:
            fields["user_metadata"] = {}
        return page("checkpoints", [fields], dict, query)

    def sessions(self, session: Session, query: Query) -> dict[str, Any]:
        """The sessions, latest first."""
        known = self._sessions(session.tenant)
        latest = sorted(known.values(), key=lambda one: (-one.opened, one.session_id))
        return page("sessions", latest, _describe_session, query)

    def session(self, session: Session, query: Query) -> dict[str, Any]:
        """The session `subject`, with a list of its runs and samplers."""
        known = self._sessions(session.tenant).get(query.subject)
        if known is None:
            raise NotFound(f"no session {query.subject[:80]!r}")
        told = trimmed(_describe_session(known), PAGE_BYTES // 2)
        run_ids = _of_session(self._run_ids(session.tenant), known.session_id)
        sampler_ids = _of_session(self._samplers(session.tenant), known.session_id)
        ids, rest = cut([*run_ids, *sampler_ids], str, query, PAGE_BYTES // 2)
        num_runs = max(len(run_ids) - query.offset, 0)
        return {**told, "run_ids": ids[:num_runs], "sampler_ids": ids[num_runs:], **rest}

    def sampler(self, session: Session, query: Query) -> dict[str, Any]:
        """The sampler `subject`."""
        sampler = self._samplers(session.tenant).get(query.subject)
        if sampler is None:
            raise NotFound(f"no sampler {query.subject[:80]!r}")
        return asdict(sampler)

    def _run_ids(self, tenant: str) -> set[str]:
        """All runs but those that never came to be."""
        runs = self._books.runs.values()
        own = {run.run_id for run in runs if run.tenant == tenant and not _is_stillborn(run)}
        return own.union(self._books.catalog.runs(tenant))

    def _live(self, run_id: str, tenant: str) -> Run | None:
        run = self._books.runs.get(run_id)
        if run is None or run.tenant != tenant:
            return None
        return None if _is_stillborn(run) and run_id in self._books.catalog.runs(tenant) else run

    def _last_used(self, run_id: str, tenant: str) -> float:
        """Seconds since the epoch."""
        run = self._live(run_id, tenant)
        if run is not None:
            return run.last_used + self._books.wall_offset
        return self._books.catalog.of(tenant, run_id)[0].created

    def _describe_run(self, run_id: str, tenant: str) -> dict[str, Any]:
        saved = self._books.catalog.of(tenant, run_id)
        run = self._live(run_id, tenant)
        return {
            **(_describe_saved(saved[0]) if run is None else _describe_live(run)),
            "owner": tenant,
            "last_request_time": self._last_used(run_id, tenant),
            "last_checkpoint": _last(saved, "weights"),
            "last_sampler_checkpoint": _last(saved, "sampler_weights"),
        }

    def _sessions(self, tenant: str) -> dict[str, PastSession]:
        """By id: the open ones, those that are remembered, and those of which a run is left."""
        begun: dict[str, float] = {}
        for run_id in self._run_ids(tenant):
            session_id, time = run_id.partition(":")[0], self._last_used(run_id, tenant)
            begun[session_id] = min(begun.get(session_id, time), time)
        left = {name: PastSession(session_id=name, opened=time) for name, time in begun.items()}
        opened = {
            name: PastSession.of(session, self._books.wall_offset)
            for name, session in self._books.sessions.by_id.items()
            if session.tenant == tenant
        }
        return {**left, **self._books.past_sessions.of(tenant), **opened}

    def _samplers(self, tenant: str) -> dict[str, PastSampler]:
        samplers = self._books.samplers.values()
        live = {one.sampler_id: PastSampler.of(one) for one in samplers if one.tenant == tenant}
        return {**self._books.past_samplers.of(tenant), **live}


def _is_stillborn(run: Run) -> bool:
    return run.phase is Phase.CLOSED and not run.info


def _describe_live(run: Run) -> dict[str, Any]:
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
        "forked_from": run.forked_from,
        "user_metadata": header.user_metadata,
    }


def _describe_saved(newest: Checkpoint) -> dict[str, Any]:
    """A run of which only checkpoints are left."""
    run_id = parse_path(newest.path).run_id
    return {
        "run_id": run_id,
        "session_id": run_id.partition(":")[0],
        "base_model": newest.base_model,
        "rank": newest.rank,
        "alpha": newest.alpha,
        "train_attn": newest.train_attn,
        "train_mlp": newest.train_mlp,
        "train_unembed": newest.train_unembed,
        "state": "saved",
        "is_lost": False,
        "detail": "",
        "forked_from": "",
        "user_metadata": {},
    }


def _last(saved: list[Checkpoint], kind: str) -> dict[str, Any] | None:
    of_kind = (checkpoint.fields() for checkpoint in saved if f"/{kind}/" in checkpoint.path)
    newest = next(of_kind, None)
    return None if newest is None else trimmed(newest, LAST_BYTES)


def _describe_session(session: PastSession) -> dict[str, Any]:
    return {**asdict(session), "tags": list(session.tags)}


def _of_session(ids: Iterable[str], session_id: str) -> list[str]:
    own = (name for name in ids if name.partition(":")[0] == session_id)
    return sorted(own, key=lambda name: int(name.rpartition(":")[2]), reverse=True)
