"""What a tenant has, told to itself alone: runs, checkpoints, sessions and samplers.

Something is told of as long as anything of it is left: a run whose worker and session are gone has
its checkpoints, and a session its runs. Lists begin with what was used or made last.
"""

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
        latest = sorted(self._runs(tenant), reverse=True)
        return page("runs", latest, lambda run: self._describe_run(run[1], tenant), query)

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
        tenant = session.tenant
        known = {**self._begun(tenant), **self._remembered(tenant)}
        latest = sorted(known.items(), key=lambda one: (one[1].opened, one[0]), reverse=True)
        return page("sessions", latest, lambda one: _describe_session(*one), query)

    def session(self, session: Session, query: Query) -> dict[str, Any]:
        """The session `subject`, with a list of its runs and samplers."""
        session_id, tenant = query.subject, session.tenant
        own_runs, own_samplers = f"{session_id}:train:", f"{session_id}:sample:"
        latest = sorted(self._runs(tenant), reverse=True)
        runs = [run for run in latest if run[1].startswith(own_runs)]
        known = self._remembered(tenant).get(session_id)
        if known is None and runs:
            known = PastSession(opened=runs[-1][0])
        if known is None:
            raise NotFound(f"no session {session_id[:80]!r}")
        told = trimmed(_describe_session(session_id, known), PAGE_BYTES // 2)
        samplers = [name for name in self._samplers(tenant) if name.startswith(own_samplers)]
        both = [run_id for _, run_id in runs] + samplers[::-1]
        ids, rest = cut(both, str, query, PAGE_BYTES // 2)
        num_runs = max(len(runs) - query.offset, 0)
        return {**told, "run_ids": ids[:num_runs], "sampler_ids": ids[num_runs:], **rest}

    def sampler(self, session: Session, query: Query) -> dict[str, Any]:
        """The sampler `subject`."""
        sampler = self._samplers(session.tenant).get(query.subject)
        if sampler is None:
            raise NotFound(f"no sampler {query.subject[:80]!r}")
        return asdict(sampler)

    def _runs(self, tenant: str) -> list[tuple[float, str]]:
        """When each run was last used and its id, without those that never came to be."""
        own = [run for run in self._books.runs.values() if run.tenant == tenant]
        live = {run.run_id: self._last_used(run) for run in own if not _is_stillborn(run)}
        saved = self._books.catalog.runs_by_time(tenant)
        return [one for one in saved if one[1] not in live] + [
            (time, run_id) for run_id, time in live.items()
        ]

    def _live(self, run_id: str, tenant: str) -> Run | None:
        run = self._books.runs.get(run_id)
        if run is None or run.tenant != tenant:
            return None
        return None if _is_stillborn(run) and run_id in self._books.catalog.runs(tenant) else run

    def _last_used(self, run: Run) -> float:
        return run.last_used + self._books.wall_offset

    def _describe_run(self, run_id: str, tenant: str) -> dict[str, Any]:
        saved = self._books.catalog.of(tenant, run_id)
        run = self._live(run_id, tenant)
        return {
            **(_describe_saved(saved[0]) if run is None else _describe_live(run)),
            "owner": tenant,
            "last_request_time": saved[0].created if run is None else self._last_used(run),
            "last_checkpoint": _last(saved, "weights"),
            "last_sampler_checkpoint": _last(saved, "sampler_weights"),
        }

    def _remembered(self, tenant: str) -> dict[str, PastSession]:
        """The sessions that are open, and the last that have ended, by id."""
        opened = {
            name: PastSession.of(session, self._books.wall_offset)
            for name, session in self._books.sessions.by_id.items()
            if session.tenant == tenant
        }
        return {**self._books.past_sessions.of(tenant), **opened}

    def _begun(self, tenant: str) -> dict[str, PastSession]:
        """The sessions of which runs are left, opened when the first of these was last used."""
        begun: dict[str, float] = {}
        for time, run_id in self._runs(tenant):
            session_id = run_id.partition(":")[0]
            begun[session_id] = min(begun.get(session_id, time), time)
        return {session_id: PastSession(opened=time) for session_id, time in begun.items()}

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


def _describe_session(session_id: str, session: PastSession) -> dict[str, Any]:
    return {"session_id": session_id, **asdict(session), "tags": list(session.tags)}
