"""The requests about saved states and files, as `messages.py` has the others.

Answers are `Reply` and `Failure`. Uploads and downloads are streams of bytes in parts of
`part_bytes`, the last one shorter.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from .messages import Array, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteCheckpoint(Request):
    """Deletes a saved state; runs and samplers made from it go on."""

    kind: ClassVar[str] = "delete_checkpoint"
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RenameCheckpoint(Request):
    """Gives a saved state another name under the same run; the answer is {"path"}."""

    kind: ClassVar[str] = "rename_checkpoint"
    path: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpireCheckpoint(Request):
    """Sets when a saved state is deleted; the answer is {"path", "expires"}."""

    kind: ClassVar[str] = "expire_checkpoint"
    path: str
    ttl_s: int  # from now on, 0 never


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishCheckpoint(Request):
    """Lets everybody read a saved state, or its owner alone; the answer is {"path", "public"}."""

    kind: ClassVar[str] = "publish_checkpoint"
    path: str
    public: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyCheckpoint(Request):
    """Copies a saved state, of one's own or a public one; the answer is {"path", "size_bytes"}."""

    kind: ClassVar[str] = "copy_checkpoint"
    path: str
    target: str  # a path of the same kind under a run number that the client gave away
    ttl_s: int = 0  # of the copy: seconds until it is deleted, 0 never
    user_metadata: dict[str, str] = field(default_factory=dict[str, str])  # of the copy


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenDownload(Request):
    """Begins to read a saved state as one stream of bytes: its files, one after the other.

    The answer is {"transfer_id", "part_bytes", "files": [[name, size], ...]}.
    """

    kind: ClassVar[str] = "open_download"
    path: str
    form: str  # "state": the file as it is kept; "peft": an adapter as peft writes it
    unembed: str = "include"  # of "peft"; or "omit", or "separate": an adapter of its own beside
    base_model: str = ""  # of "peft": what its config is to name, "" the name on this server


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPart(Request):
    """Asks for one part of a download; the answer is {"digest"} and the array data."""

    kind: ClassVar[str] = "read_part"
    transfer_id: int
    part: int  # bytes from part * part_bytes on


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenUpload(Request):
    """Begins to send a PEFT adapter, its files one after the other as one stream of bytes.

    The answer is {"transfer_id", "part_bytes"}.
    """

    kind: ClassVar[str] = "open_upload"
    path: str  # that the state will have: weights under a run number that the client gave away
    base_model: str
    sizes: dict[str, int]  # bytes of "adapter_config.json" and "adapter_model.safetensors"
    ignore_dropout: bool = False
    ttl_s: int = 0  # of the state: seconds until it is deleted, 0 never
    user_metadata: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True, kw_only=True)
class WritePart(Request):
    """One part of an upload, in any order; a repeat changes nothing. Arrays: data."""

    kind: ClassVar[str] = "write_part"
    transfer_id: int
    part: int  # bytes from part * part_bytes on
    digest: bytes  # 16 bytes, blake2b over the data
    arrays: list[Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishUpload(Request):
    """Turns an upload into a saved state; the answer is {"path", "size_bytes", "rank", "alpha"}."""

    kind: ClassVar[str] = "finish_upload"
    transfer_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseTransfer(Request):
    """Forgets a transfer; of an unfinished upload nothing stays."""

    kind: ClassVar[str] = "close_transfer"
    transfer_id: int
