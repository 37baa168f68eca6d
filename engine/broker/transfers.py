"""Uploads and downloads: who may open one, which part may come, and when it is forgotten.

Parts are opaque and few are on their way at a time, so that files never delay training: a client
sends or asks for the next when one is answered. The bytes go to the store and come from it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ...client.errors import BadRequest, Busy, Conflict, NotFound, WeftError
from ...client.file_messages import (
    CloseTransfer,
    FinishUpload,
    OpenDownload,
    OpenUpload,
    ReadPart,
    WritePart,
)
from ...client.local_files import CONFIG_NAME, TENSORS_NAME
from ...client.messages import Array, Reply
from ...client.ttl import check_ttl
from ...client.worker_messages import SiteSpan
from ..files.jobs import (
    ForgetTransfer,
    ImportAdapter,
    JobResult,
    OpenSpace,
    OpenState,
    ReadBytes,
    WriteBytes,
)
from ..files.outgoing import UNEMBED_CHOICES
from .books import Books
from .events import ClientMessage, ToClient
from .keeping import check_new_path
from .sessions import Session
from .storing import Storing

FORMS = ("peft", "state")


class Transfer:
    """One upload or download of a session."""

    __slots__ = (
        "is_finishing",
        "last_used",
        "num_in_flight",
        "received",
        "session",
        "size",
        "spans",
        "transfer_id",
        "upload",
    )

    def __init__(self, transfer_id: int, session: Session, now: float) -> None:
        self.transfer_id = transfer_id
        self.session = session
        self.size = 0  # bytes in all; of a download known once it is open
        self.upload: OpenUpload | None = None  # with the base model's own name
        self.spans: Sequence[SiteSpan] = ()  # of its base model
        self.received: set[int] = set()  # parts of an upload that are stored
        self.num_in_flight = 0
        self.is_finishing = False  # it is being turned into a state
        self.last_used = now


class Transfers:
    """All transfers that are under way."""

    def __init__(self, books: Books, storing: Storing) -> None:
        self._books = books
        self._config = books.config
        self._storing = storing
        self._last_id = 0
        self.by_id: dict[int, Transfer] = {}

    # Downloads.

    def open_download(self, session: Session, message: ClientMessage, header: OpenDownload) -> None:
        """Begin to read a checkpoint of the tenant's, or a public one."""
        if self._storing.is_known(session, header):
            return
        record = self._books.catalog.find(header.path, session.tenant)
        if header.form not in FORMS:
            raise BadRequest(f"form is {header.form[:80]!r}, not one of {', '.join(FORMS)}")
        if header.unembed not in UNEMBED_CHOICES:
            choices = ", ".join(UNEMBED_CHOICES)
            raise BadRequest(f"unembed is {header.unembed[:80]!r}, not one of {choices}")
        if header.form == "state" and (header.unembed != "include" or header.base_model):
            raise BadRequest(
                "unembed and base_model are of the form peft; a state is sent as it is"
            )
        self._check_room(session)
        work = self._storing.begin(session, header)
        transfer = self._add(session)

        def opened(result: JobResult) -> None:
            if result.code:
                self._drop(transfer)
                self._storing.fail(work, result)
                return
            transfer.size = sum(size for _, size in result.result["files"])
            self._landed(transfer)
            self._storing.succeed(work, self._describe(transfer) | result.result)

        number = transfer.transfer_id
        is_own = record.tenant == session.tenant
        job = OpenState(number, record.path, header.form, header.unembed, header.base_model, is_own)
        self._storing.ask(job, opened)

    def read_part(self, session: Session, message: ClientMessage, header: ReadPart) -> None:
        """One part of a download."""
        transfer = self._find(session, header.transfer_id, is_upload=False)
        offset, size = self._range(transfer, header.part)
        self._take_off(transfer)

        def read(result: JobResult) -> None:
            self._landed(transfer)
            self._books.metrics.outcome(header.kind, result.code)
            if result.code:
                self._books.refuse(session, header.request_id, result.code, result.detail)
            elif session.peer is not None:
                session.last_sent = self._books.now
                reply = Reply(
                    request_id=header.request_id, result=result.result, arrays=[part_array(size)]
                )
                self._books.actions.append(ToClient(session.peer, reply, (result.data,)))

        self._storing.ask(ReadBytes(transfer.transfer_id, offset, size), read)

    # Uploads.

    def open_upload(self, session: Session, message: ClientMessage, header: OpenUpload) -> None:
        """Begin to take an adapter, to be kept under a free path of the session."""
        if self._storing.is_known(session, header):
            return
        check_new_path(self._books, session, header.path, "weights")
        check_ttl(header.ttl_s or None)
        self._check_sizes(header.sizes)
        model, spans = self._find_model(header.base_model)
        self._check_room(session)
        size = sum(header.sizes.values())
        held = sum(transfer.size for transfer in self.by_id.values() if transfer.upload is not None)
        if held + size > self._config.total_upload_bytes:
            raise Busy(f"uploads of {held} bytes are open")
        work = self._storing.begin(session, header)
        transfer = self._add(session)
        transfer.upload, transfer.size = replace(header, base_model=model), size
        transfer.spans = spans
        self._books.catalog.locked.add(header.path)

        def opened(result: JobResult) -> None:
            if result.code:
                self._drop(transfer)
                self._storing.fail(work, result)
                return
            self._landed(transfer)
            self._storing.succeed(work, self._describe(transfer))

        self._storing.ask(OpenSpace(transfer.transfer_id), opened)

    def write_part(self, session: Session, message: ClientMessage, header: WritePart) -> None:
        """One part of an upload; parts may come in any order and again."""
        transfer = self._find(session, header.transfer_id, is_upload=True)
        offset, size = self._range(transfer, header.part)
        payload = message.frames[1:]
        if header.arrays != [part_array(size)] or list(map(len, payload)) != [size]:
            raise BadRequest(f"part {header.part} is {size} bytes in one array, data", "malformed")
        self._take_off(transfer)

        def written(result: JobResult) -> None:
            self._landed(transfer)
            self._books.metrics.outcome(header.kind, result.code)
            if result.code:
                self._books.refuse(session, header.request_id, result.code, result.detail)
            else:
                transfer.received.add(header.part)
                self._books.reply(session, header.request_id, {})

        job = WriteBytes(transfer.transfer_id, offset, header.digest, payload[0])
        self._storing.ask(job, written)

    def finish_upload(self, session: Session, message: ClientMessage, header: FinishUpload) -> None:
        """All parts are there: make a saved state of them. The transfer ends either way."""
        if self._storing.is_known(session, header):
            return
        transfer = self._find(session, header.transfer_id, is_upload=True)
        upload = transfer.upload
        if upload is None:
            raise AssertionError("an upload without its header")
        missing = next(
            (part for part in range(self._num_parts(transfer)) if part not in transfer.received),
            None,
        )
        if missing is not None:
            count = self._num_parts(transfer)
            raise BadRequest(f"part {missing} of the upload's {count} has not come")
        work = self._storing.begin(session, header)
        transfer.is_finishing = True

        def finished(result: JobResult) -> None:
            self._drop(transfer)
            if result.record is None:
                self._storing.fail(work, result)
                return
            self._books.catalog.add(result.record)
            self._books.note("checkpoint_imported", session.tenant, {"path": upload.path})
            self._storing.succeed(work, result.result)

        job = ImportAdapter(
            transfer_id=transfer.transfer_id,
            path=upload.path,
            tenant=session.tenant,
            base_model=upload.base_model,
            tensor_bytes=upload.sizes[TENSORS_NAME],
            spans=transfer.spans,
            ignore_dropout=upload.ignore_dropout,
            ttl_s=upload.ttl_s,
            user_metadata=upload.user_metadata,
        )
        self._storing.ask(job, finished)

    # The end of both.

    def close(self, session: Session, message: ClientMessage, header: CloseTransfer) -> None:
        """Forget a transfer, unless it is already gone."""
        transfer = self.by_id.get(header.transfer_id)
        if transfer is not None and transfer.session is session:
            self._give_up(transfer)
        self._books.reply(session, header.request_id, {})

    def end_session(self, session: Session) -> None:
        """Forget the transfers of a session that has ended."""
        for transfer in self._of(session):
            self._give_up(transfer)

    def expire(self) -> None:
        """Forget transfers that nobody goes on with."""
        earliest = self._books.now - self._config.transfer_expiry_s
        for transfer in list(self.by_id.values()):
            if not transfer.num_in_flight and transfer.last_used <= earliest:
                self._give_up(transfer)

    def check_integrity(self) -> None:
        """Raise AssertionError when the books contradict each other."""
        for number, transfer in self.by_id.items():
            assert number == transfer.transfer_id
            assert 0 <= transfer.num_in_flight <= self._config.parts_in_flight
            assert not transfer.session.is_ended or transfer.is_finishing
            if transfer.upload is not None:
                assert transfer.upload.path in self._books.catalog.locked

    def _add(self, session: Session) -> Transfer:
        """Enter a transfer; it counts as having a part on its way until it is open."""
        self._last_id += 1
        transfer = Transfer(self._last_id, session, self._books.now)
        transfer.num_in_flight = 1
        self.by_id[transfer.transfer_id] = transfer
        return transfer

    def _drop(self, transfer: Transfer) -> None:
        """Strike a transfer off, and let the store forget it."""
        if self.by_id.pop(transfer.transfer_id, None) is None:
            return
        if transfer.upload is not None:
            self._books.catalog.locked.discard(transfer.upload.path)
        self._storing.ask(ForgetTransfer(transfer.transfer_id))

    def _give_up(self, transfer: Transfer) -> None:
        if not transfer.is_finishing:  # then it ends by itself
            self._drop(transfer)

    def _take_off(self, transfer: Transfer) -> None:
        """Count a part as on its way; raises Busy when too many are."""
        most = self._config.parts_in_flight
        if transfer.num_in_flight >= most:
            raise Busy(f"{most} parts of the transfer are on their way")
        transfer.num_in_flight += 1
        transfer.last_used = self._books.now

    def _landed(self, transfer: Transfer) -> None:
        transfer.num_in_flight -= 1
        transfer.last_used = self._books.now

    def _find(self, session: Session, transfer_id: int, *, is_upload: bool) -> Transfer:
        if self._books.is_stopping:
            raise WeftError("the server is shutting down", "stopping")
        transfer = self.by_id.get(transfer_id)
        if transfer is None or transfer.session is not session or not transfer.size:
            raise NotFound(f"no transfer {transfer_id}")
        if is_upload != (transfer.upload is not None) or transfer.is_finishing:
            raise Conflict(f"transfer {transfer_id} takes no such part")
        return transfer

    def _range(self, transfer: Transfer, part: int) -> tuple[int, int]:
        """Offset and size of a part; raises BadRequest when there is no such part."""
        num_parts = self._num_parts(transfer)
        if not 0 <= part < num_parts:
            raise BadRequest(f"part is {part}, not 0 to {num_parts - 1}")
        offset = part * self._config.part_bytes
        return offset, min(self._config.part_bytes, transfer.size - offset)

    def _num_parts(self, transfer: Transfer) -> int:
        return -(-transfer.size // self._config.part_bytes)

    def _of(self, session: Session) -> list[Transfer]:
        return [transfer for transfer in self.by_id.values() if transfer.session is session]

    def _describe(self, transfer: Transfer) -> dict[str, int]:
        return {"transfer_id": transfer.transfer_id, "part_bytes": self._config.part_bytes}

    def _check_room(self, session: Session) -> None:
        if len(self._of(session)) >= self._config.transfers:
            raise Busy(f"{self._config.transfers} transfers of the session are open")
        if len(self.by_id) >= self._config.total_transfers:
            raise Busy(f"{self._config.total_transfers} transfers are open")

    def _check_sizes(self, sizes: Mapping[str, int]) -> None:
        names = {TENSORS_NAME: self._config.upload_bytes, CONFIG_NAME: self._config.config_bytes}
        for name in [*sizes, *names]:
            if name not in names:
                raise BadRequest(f"{name[:80]!r} is not taken; an adapter is {' and '.join(names)}")
            if sizes.get(name, 0) <= 0:
                raise BadRequest(f"{name} is missing or empty")
            if sizes[name] > names[name]:
                detail = f"{name} has {sizes[name]} bytes, at most {names[name]}"
                raise BadRequest(detail, "too_large")

    def _find_model(self, name: str) -> tuple[str, Sequence[SiteSpan]]:
        """A base model's own name, and its sites."""
        for worker in self._books.workers:
            if worker.model is not None and worker.serves(name):
                if not worker.sites:
                    raise BadRequest(f"the worker of {name!r} does not say what can be adapted")
                return worker.model.name, worker.sites
        if self._books.workers.are_loading():
            raise Busy(f"no worker serves {name!r} yet")
        served = ", ".join(repr(card.name) for card in self._books.workers.models())
        raise NotFound(f"no model {name!r}; served: {served or 'none'}")


def part_array(size: int) -> Array:
    """How the bytes of a part are described in a header."""
    return Array(name="data", dtype="uint8", shape=[size], encoding="raw", frame=0)
