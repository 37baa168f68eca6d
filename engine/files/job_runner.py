"""Carries out the broker's jobs on files, one at a time. Decides nothing about who may."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from ...client.errors import BadRequest, NotFound
from ...client.local_files import TENSORS_NAME
from ...client.wire import digest_bytes
from .checkpoint import Checkpoint
from .jobs import (
    CopyState,
    DeleteState,
    ExpireState,
    ForgetTransfer,
    ImportAdapter,
    Job,
    JobResult,
    OpenSpace,
    OpenState,
    PublishState,
    ReadBytes,
    RenameState,
    WriteBytes,
)
from .outgoing import Stream, peft_files, state_files
from .peft_config import read_config
from .peft_tensors import Adapter, match, read_values
from .store import CheckpointFiles, make_private, now
from .tensors import make_header, read_contents

# Of an upload: reading it keeps the interpreter from everything else for some 50 ms.
MAX_FOREIGN_HEADER_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class _Open:
    """A transfer: the file it reads or writes, and what is sent of it."""

    handle: BinaryIO
    stream: Stream | None = None  # None for an upload


class JobRunner:
    """The files of one engine, and the transfers that are under way.

    An upload lies in a file without a name: it is gone when the transfer ends, or the process.
    """

    def __init__(self, files: CheckpointFiles) -> None:
        self._files = files
        self._open: dict[int, _Open] = {}
        self._carriers: dict[type, Callable[[Any], JobResult]] = {
            DeleteState: self._delete,
            RenameState: self._rename,
            ExpireState: self._expire,
            PublishState: self._publish,
            CopyState: self._copy,
            OpenState: self._open_state,
            ReadBytes: self._read,
            OpenSpace: self._open_space,
            WriteBytes: self._write,
            ImportAdapter: self._import,
            ForgetTransfer: self._forget,
        }

    def carry_out(self, job: Job) -> JobResult:
        """Do a job.

        Raises:
            WeftError, OSError: it failed and has no effect.
        """
        return self._carriers[type(job)](job)

    def close(self) -> None:
        """End all transfers."""
        for transfer in self._open.values():
            transfer.handle.close()
        self._open.clear()

    def _delete(self, job: DeleteState) -> JobResult:
        self._files.delete(job.path)
        return JobResult()

    def _rename(self, job: RenameState) -> JobResult:
        return JobResult(result={"path": self._files.rename(job.path, job.name)})

    def _expire(self, job: ExpireState) -> JobResult:
        record = self._files.amend(job.path, expires=job.expires)
        return JobResult(result={"path": job.path, "expires": record.expires}, record=record)

    def _publish(self, job: PublishState) -> JobResult:
        record = self._files.amend(job.path, public=job.public)
        return JobResult(result={"path": job.path, "public": record.public}, record=record)

    def _copy(self, job: CopyState) -> JobResult:
        created = now()
        record = self._files.copy(
            job.path,
            path=job.target,
            tenant=job.tenant,
            created=created,
            expires=created + job.ttl_s if job.ttl_s else 0.0,
            user_metadata=job.user_metadata,
            public=False,
        )
        result = {"path": record.path, "size_bytes": record.size_bytes}
        return JobResult(result=result, record=record)

    def _open_state(self, job: OpenState) -> JobResult:
        handle = self._files.handle(job.path)
        try:
            record, contents = self._files.describe(job.path, handle)
            if not (job.is_own or record.public):  # it was saved anew since the broker looked
                raise NotFound(f"no checkpoint {job.path}")
            files = (
                state_files(contents, None if job.is_own else _without_owner(record))
                if job.form == "state"
                else peft_files(record, contents, job.unembed, job.base_model)
            )
        except BaseException:
            handle.close()
            raise
        self._open[job.transfer_id] = _Open(handle, Stream(files))
        return JobResult(result={"files": [[file.name, file.size] for file in files]})

    def _read(self, job: ReadBytes) -> JobResult:
        transfer = self._find(job.transfer_id)
        if transfer.stream is None:
            raise BadRequest("an upload is not read")
        data = transfer.stream.read(transfer.handle, job.offset, job.size)
        if len(data) != job.size:
            raise BadRequest(f"the state ends after {len(data)} of {job.size} bytes")
        return JobResult(result={"digest": digest_bytes(data)}, data=data)

    def _open_space(self, job: OpenSpace) -> JobResult:
        make_private(self._files.root)
        handle = tempfile.TemporaryFile(dir=self._files.root)  # noqa: SIM115 - the transfer's
        self._open[job.transfer_id] = _Open(handle)
        return JobResult()

    def _write(self, job: WriteBytes) -> JobResult:
        transfer = self._find(job.transfer_id)
        data = memoryview(job.data)
        if digest_bytes(data) != job.digest:
            raise BadRequest(f"the bytes from {job.offset} on do not have their digest")
        transfer.handle.seek(job.offset)
        transfer.handle.write(data)
        return JobResult()

    def _import(self, job: ImportAdapter) -> JobResult:
        upload = self._find(job.transfer_id).handle
        upload.seek(job.tensor_bytes)
        config = read_config(upload.read(), job.ignore_dropout)
        try:
            contents = read_contents(upload, job.tensor_bytes, MAX_FOREIGN_HEADER_BYTES)
        except ValueError as error:
            raise BadRequest(f"{TENSORS_NAME}: {error}") from None
        adapter = match(config, contents.tensors, job.spans)
        record = _record(job, adapter)

        def fill(target: Path, metadata: Mapping[str, str]) -> None:
            entries = [(tensor.name, "F32", tensor.shape) for tensor in adapter.tensors]
            with target.open("wb") as state:
                state.write(make_header(entries, metadata))
                for tensor in adapter.tensors:
                    for values in read_values(upload, tensor):
                        state.write(values.astype("<f4", copy=False).data)

        record = replace(record, size_bytes=self._files.write(record, fill))
        names = ("path", "size_bytes", "rank", "alpha", "train_attn", "train_mlp", "train_unembed")
        return JobResult(result={name: getattr(record, name) for name in names}, record=record)

    def _forget(self, job: ForgetTransfer) -> JobResult:
        transfer = self._open.pop(job.transfer_id, None)
        if transfer is not None:
            transfer.handle.close()
        return JobResult()

    def _find(self, transfer_id: int) -> _Open:
        transfer = self._open.get(transfer_id)
        if transfer is None:
            raise NotFound(f"no transfer {transfer_id}")
        return transfer


def _without_owner(record: Checkpoint) -> Checkpoint:
    return replace(record, tenant="", user_metadata={})


def _record(job: ImportAdapter, adapter: Adapter) -> Checkpoint:
    created = now()
    return Checkpoint(
        path=job.path,
        tenant=job.tenant,
        base_model=job.base_model,
        rank=adapter.config.rank,
        alpha=adapter.config.alpha,
        train_attn="attn" in adapter.families,
        train_mlp="mlp" in adapter.families,
        train_unembed="unembed" in adapter.families,
        step=0,
        size_bytes=0,
        created=created,
        user_metadata=job.user_metadata,
        has_optimizer=False,
        expires=created + job.ttl_s if job.ttl_s else 0.0,
        unembed_site=adapter.unembed_site,
    )
