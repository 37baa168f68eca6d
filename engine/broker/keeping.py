"""Which checkpoints go, change, or are copied: asked for by owners, or due."""

from collections.abc import Callable
from dataclasses import replace

from ...client.errors import BadRequest, Busy, Conflict
from ...client.file_messages import (
    CopyCheckpoint,
    DeleteCheckpoint,
    ExpireCheckpoint,
    PublishCheckpoint,
    RenameCheckpoint,
)
from ...client.messages import Request, SaveForSampler, SaveState
from ...client.paths import check_name, parse_path
from ...client.ttl import check_ttl
from ..files.checkpoint import Checkpoint, saved_path
from ..files.jobs import (
    CopyState,
    DeleteState,
    ExpireState,
    Job,
    JobResult,
    PublishState,
    RenameState,
)
from .books import Books
from .checks import check_free, check_run_id
from .events import ClientMessage
from .sessions import Session
from .storing import Storing
from .work import State, Work

_UNFINISHED = (State.HELD, State.QUEUED, State.DISPATCHED)


class Keeping:
    """Decides on checkpoints that exist. While the store changes a file, its path is locked."""

    def __init__(self, books: Books, storing: Storing) -> None:
        self._books = books
        self._catalog = books.catalog
        self._storing = storing

    def delete(self, session: Session, message: ClientMessage, header: DeleteCheckpoint) -> None:
        """Delete a checkpoint; whatever was made from it goes on."""
        if self._storing.is_known(session, header):
            return
        record = self._catalog.find_own(header.path, session.tenant)
        self._check_free(record.path)
        work = self._storing.begin(session, header)
        self._catalog.remove(record.path)
        self._catalog.locked.add(record.path)

        def deleted(result: JobResult) -> None:
            self._catalog.locked.discard(record.path)
            if result.code:
                self._catalog.add(record)
                self._storing.fail(work, result)
                return
            self._note("checkpoint_deleted", record)
            self._storing.succeed(work, {})

        self._storing.ask(DeleteState(record.path), deleted)

    def rename(self, session: Session, message: ClientMessage, header: RenameCheckpoint) -> None:
        """Give a checkpoint another name under its run."""
        if self._storing.is_known(session, header):
            return
        record = self._catalog.find_own(header.path, session.tenant)
        target = str(replace(parse_path(header.path), name=check_name(header.name)))
        if target in self._catalog:
            raise Conflict(f"{target} exists")
        self._check_free(record.path)
        self._check_free(target)
        work = self._storing.begin(session, header)
        self._catalog.remove(record.path)
        self._catalog.locked |= {record.path, target}

        def renamed(result: JobResult) -> None:
            self._catalog.locked -= {record.path, target}
            self._catalog.add(record if result.code else replace(record, path=target))
            self._answer(work, result)

        self._storing.ask(RenameState(record.path, header.name), renamed)

    def expire(self, session: Session, message: ClientMessage, header: ExpireCheckpoint) -> None:
        """Set or clear the time at which a checkpoint is deleted."""
        if self._storing.is_known(session, header):
            return
        record = self._catalog.find_own(header.path, session.tenant)
        ttl_s = check_ttl(header.ttl_s or None)
        expires = self._wall_clock() + ttl_s if ttl_s else 0.0
        changed = replace(record, expires=expires)
        self._amend(session, header, changed, ExpireState(record.path, expires))

    def publish(self, session: Session, message: ClientMessage, header: PublishCheckpoint) -> None:
        """Let everybody read a checkpoint, or its owner alone; who has opened it goes on."""
        if self._storing.is_known(session, header):
            return
        record = self._catalog.find_own(header.path, session.tenant)
        changed = replace(record, public=header.public)
        self._amend(session, header, changed, PublishState(record.path, header.public))

    def copy(self, session: Session, message: ClientMessage, header: CopyCheckpoint) -> None:
        """Copy a checkpoint to a free path of the session; the copy is private."""
        if self._storing.is_known(session, header):
            return
        record = self._catalog.find(header.path, session.tenant)
        kind = parse_path(record.path).kind
        check_new_path(self._books, session, header.target, kind)
        ttl_s = check_ttl(header.ttl_s or None)
        work = self._storing.begin(session, header)
        self._catalog.locked.add(header.target)

        def copied(result: JobResult) -> None:
            self._catalog.locked.discard(header.target)
            if result.record is not None:
                self._catalog.add(result.record)
                self._note("checkpoint_copied", result.record)
            self._answer(work, result)

        job = CopyState(record.path, header.target, session.tenant, ttl_s, header.user_metadata)
        self._storing.ask(job, copied)

    def delete_expired(self) -> None:
        """Delete what is due, but for paths that are being changed or saved anew: those wait."""
        for record in self._catalog.take_expired(self._wall_clock()):
            if record.path in self._catalog.locked or is_being_saved(self._books, record.path):
                self._catalog.add(record)
                continue
            self._catalog.remove(record.path)
            self._catalog.locked.add(record.path)
            self._storing.ask(DeleteState(record.path), self._expired(record))
            self._note("checkpoint_expired", record)

    def _expired(self, record: Checkpoint) -> Callable[[JobResult], None]:
        # A file that stays is found at the next start, and is due again.
        return lambda result: self._catalog.locked.discard(record.path)

    def _amend(self, session: Session, header: Request, changed: Checkpoint, job: Job) -> None:
        """Have the store write a checkpoint's file anew, with what has changed in its record."""
        self._check_free(changed.path)
        work = self._storing.begin(session, header)
        self._catalog.locked.add(changed.path)

        def amended(result: JobResult) -> None:
            self._catalog.locked.discard(changed.path)
            if not result.code:
                self._catalog.add(changed)
            self._answer(work, result)

        self._storing.ask(job, amended)

    def _answer(self, work: Work, result: JobResult) -> None:
        if result.code:
            self._storing.fail(work, result)
        else:
            self._storing.succeed(work, result.result)

    def _check_free(self, path: str) -> None:
        if path in self._catalog.locked:
            raise Busy(f"{path} is being changed")
        if is_being_saved(self._books, path):
            raise Busy(f"{path} is being saved")

    def _wall_clock(self) -> float:
        return self._books.now + self._books.wall_offset

    def _note(self, name: str, record: Checkpoint) -> None:
        self._books.note(name, record.tenant, {"path": record.path})


def is_being_saved(books: Books, path: str) -> bool:
    """Whether an accepted and unfinished command writes the path."""
    run = books.runs.get(parse_path(path).run_id)
    return run is not None and any(
        work.state in _UNFINISHED
        and isinstance(work.header, SaveState | SaveForSampler)
        and saved_path(work.header) == path
        for work in run.log.commands.values()
    )


def check_new_path(books: Books, session: Session, path: str, kind: str) -> None:
    """Raise unless the session may write a file of this kind under this path, beside its runs."""
    parts = parse_path(path)
    check_run_id(session, parts.run_id)
    if parts.kind != kind:
        raise BadRequest(f"{path} is not of kind {kind}")
    if path in books.catalog.locked or is_being_saved(books, path):
        raise Conflict(f"{path} is being written")
    check_free(books, session, path, overwrite=False)
