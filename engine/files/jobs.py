"""What is done to files: decided by the broker, carried out by `JobRunner`, in its own thread."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ...client.worker_messages import SiteSpan
from .checkpoint import Checkpoint


class DeleteState(NamedTuple):
    """Remove a state; none there is a success."""

    path: str


class RenameState(NamedTuple):
    """Give a state another name."""

    path: str
    name: str


class ExpireState(NamedTuple):
    """Note in a state's file when it is to be deleted."""

    path: str
    expires: float  # seconds since the epoch, 0 never


class PublishState(NamedTuple):
    """Note in a state's file who may read it."""

    path: str
    public: bool


class CopyState(NamedTuple):
    """Write a state again under another path; the answer has the record of the copy."""

    path: str
    target: str
    tenant: str  # of the copy
    ttl_s: int
    user_metadata: dict[str, str]


class OpenState(NamedTuple):
    """Begin to read a state; the result is {"files": [[name, size], ...]}."""

    transfer_id: int
    path: str
    form: str
    unembed: str
    base_model: str
    is_own: bool = True  # otherwise nothing is sent of whose it is and what he noted beside it


class ReadBytes(NamedTuple):
    """Read a range of an open state; the answer's `data`, and {"digest"}."""

    transfer_id: int
    offset: int
    size: int


class OpenSpace(NamedTuple):
    """Begin to take an upload."""

    transfer_id: int


class WriteBytes(NamedTuple):
    """Write a range of an upload, if its digest is right."""

    transfer_id: int
    offset: int
    digest: bytes
    data: Any  # has the buffer protocol


class ImportAdapter(NamedTuple):
    """Turn an upload into a state; the answer has its record."""

    transfer_id: int
    path: str
    tenant: str
    base_model: str
    tensor_bytes: int  # of the upload; what follows them is the adapter's config
    spans: Sequence[SiteSpan]
    ignore_dropout: bool
    ttl_s: int
    user_metadata: dict[str, str]


class ForgetTransfer(NamedTuple):
    """End an upload or download; what was uploaded is gone."""

    transfer_id: int


Job = (
    DeleteState
    | RenameState
    | ExpireState
    | PublishState
    | CopyState
    | OpenState
    | ReadBytes
    | OpenSpace
    | WriteBytes
    | ImportAdapter
    | ForgetTransfer
)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """How a job went."""

    code: str = ""  # of the error, "" for a success
    detail: str = ""
    result: dict[str, Any] = field(default_factory=dict)
    data: bytes = b""
    record: Checkpoint | None = None  # of a state that was written
