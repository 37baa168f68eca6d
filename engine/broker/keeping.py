"""Which checkpoints go, change their name or their time: asked for by owners, or due."""

from collections.abc import Callable
from dataclasses import replace

from ...client.errors import Busy, Conflict
from ...client.file_messages import (
    DeleteCheckpoint,
    ExpireCheckpoint,
    RenameCheckpoint,
)
from ...client.messages import (
    SaveForSampler,
    SaveState,
)
from ...client.paths import CheckpointPath, check_name, parse_path
from ...client.ttl import check_ttl
from ..files.checkpoint import Checkpoint
from ..files.jobs import DeleteState, ExpireState, JobResult, RenameState
from .books import Books
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
        record = self._catalog.find(header.path, session.tenant)
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
        record = self._catalog.find(header.path, session.tenant)
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
        record = self._catalog.find(header.path, session.tenant)
        ttl_s = check_ttl(header.ttl_s or None)
        expires = self._wall_clock() + ttl_s if ttl_s else 0.0
        self._check_free(record.path)
        work = self._storing.begin(session, header)
        self._catalog.locked.add(record.path)

        def changed(result: JobResult) -> None:
            self._catalog.locked.discard(record.path)
            if not result.code:
                self._catalog.add(replace(record, expires=expires))
            self._answer(work, result)

        self._storing.ask(ExpireState(record.path, expires), changed)

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
        work.state in _UNFINISHED and _saved_path(work) == path
        for work in run.log.commands.values()
    )


def _saved_path(work: Work) -> str:
    header = work.header
    if isinstance(header, SaveState):
        return str(CheckpointPath(header.run_id, "weights", header.name))
    if isinstance(header, SaveForSampler) and header.name:
        return str(CheckpointPath(header.run_id, "sampler_weights", header.name))
    return ""
