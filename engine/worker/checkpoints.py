"""Saved adapter states as files: one safetensors file each, written atomically.

    <root>/<run>/weights/<name>.safetensors           fp32 master weights, moments, step
    <root>/<run>/sampler_weights/<name>.safetensors   weights only

The record that describes a file (rank, alpha, targets, base model, ...) is in its safetensors
metadata, so a directory of such files is its own index. Listing needs no torch.
"""

import json
import logging
import os
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...client.errors import BadRequest, Conflict, NotFound
from ...client.paths import parse_path
from ..broker.catalog import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

MAX_HEADER_BYTES = 64 << 20


class CheckpointFiles:
    """The directory of saved states of one engine."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def file(self, path: str) -> Path:
        """Where the state named by a weft:// path lies; raises BadRequest for no such path."""
        parts = parse_path(path)
        return self.root / parts.run_id.replace(":", "_") / parts.kind / f"{parts.name}.safetensors"

    def save(
        self, record: Checkpoint, tensors: "dict[str, Tensor]", overwrite: bool = False
    ) -> int:
        """Write a state so that it is there whole or not at all; returns its size in bytes.

        Raises:
            Conflict: the name is taken and `overwrite` is false.
        """
        from safetensors.torch import save_file

        target = self.file(record.path)
        if target.exists() and not overwrite:
            raise Conflict(f"{record.path} exists; pass overwrite to replace it")
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            save_file(tensors, temporary, metadata={"weft": json.dumps(asdict(record))})
            with temporary.open("rb") as handle:
                os.fsync(handle.fileno())
            size = temporary.stat().st_size
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_directory(target.parent)
        return size

    def load(self, path: str) -> "tuple[Checkpoint, dict[str, Tensor]]":
        """Read a state; raises NotFound when there is none and BadRequest when it is damaged."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        source = self.file(path)
        if not source.is_file():
            raise NotFound(f"no checkpoint {path}")
        try:
            return read_record(source), load_file(source)
        except (SafetensorError, OSError, ValueError) as error:
            raise BadRequest(f"checkpoint {path} is damaged: {error}") from error

    def scan(self) -> list[Checkpoint]:
        """All states of this directory; unreadable files are left out, with a warning."""
        found = []
        for source in sorted(self.root.glob("*/*/*.safetensors")):
            try:
                found.append(read_record(source))
            except (OSError, ValueError, KeyError, TypeError) as error:
                log.warning("%s is not a checkpoint: %s", source, error)
        return found


def read_record(source: Path) -> Checkpoint:
    """Read the record from a file's safetensors header; raises ValueError when it is not one."""
    with source.open("rb") as handle:
        size = int.from_bytes(handle.read(8), "little")
        if not 0 < size <= MAX_HEADER_BYTES:
            raise ValueError("not a safetensors file")
        header = json.loads(handle.read(size))
    fields = json.loads(header.get("__metadata__", {}).get("weft", "null"))
    if not isinstance(fields, dict):
        raise ValueError("not a checkpoint of weft")
    return replace(Checkpoint(**fields), size_bytes=source.stat().st_size)


def now() -> float:
    """The creation time of a new record, seconds since the epoch."""
    return time.time()


def _sync_directory(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
