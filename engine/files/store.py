"""The directory of saved states: names, atomic writing, and what is there.

    <root>/<run>/weights/<name>.safetensors           fp32 master weights, moments, step
    <root>/<run>/sampler_weights/<name>.safetensors   weights only; external_weights the same

The record that describes a file is in its safetensors metadata, so a directory of such files is its
own index; where a file lies decides its path. Whatever is being written has a name that begins with
a dot and ends in `.part`. Directories and files are for their owner alone.
"""

import fcntl
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from ...client.errors import BadRequest, Conflict, NotFound
from ...client.paths import CheckpointPath, parse_path
from .checkpoint import METADATA_KEY, Checkpoint
from .outgoing import peft_files
from .tensors import Contents, make_header, read_contents

log = logging.getLogger(__name__)

LOCK_NAME = ".lock"
COPY_BYTES = 1 << 20


class CheckpointFiles:
    """The saved states of one engine."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def file(self, path: str) -> Path:
        """Where the state named by a weft:// path lies; raises BadRequest for no such path."""
        parts = parse_path(path)
        return self.root / parts.run_id.replace(":", "_") / parts.kind / f"{parts.name}.safetensors"

    def write(
        self,
        record: Checkpoint,
        fill: Callable[[Path, Mapping[str, str]], None],
        overwrite: bool = False,
    ) -> int:
        """Write a state so that it is there whole or not at all; returns what counts as its size.

        Args:
            record: what it is.
            fill: writes a safetensors file with this metadata to the path it is given.
            overwrite: replace a state of the same path.

        Raises:
            Conflict: the name is taken and `overwrite` is false.
        """
        target = self.file(record.path)
        if target.exists() and not overwrite:
            raise Conflict(f"{record.path} exists; pass overwrite to replace it")
        for folder in (self.root, target.parent.parent, target.parent):
            make_private(folder)
        with _whole(target) as temporary:
            fill(temporary, record.to_metadata())
        return self.record(record.path).size_bytes

    @contextmanager
    def open(self, path: str) -> Iterator[tuple[BinaryIO, Checkpoint, Contents]]:
        """A state's file, its record and its contents. It stays readable when it is deleted.

        Raises:
            NotFound: there is none.
            BadRequest: it is damaged.
        """
        with self.handle(path) as handle:
            yield (handle, *self.describe(path, handle))

    def handle(self, path: str) -> BinaryIO:
        """A state's open file; raises NotFound when there is none."""
        try:
            return self.file(path).open("rb")
        except FileNotFoundError:
            raise NotFound(f"no checkpoint {path}") from None

    def describe(self, path: str, handle: BinaryIO) -> tuple[Checkpoint, Contents]:
        """Record and contents of an open state; raises BadRequest when it is damaged.

        Its size is that of the file, or of the adapter that external weights are for others.
        """
        try:
            contents = read_contents(handle)
            record = Checkpoint.from_metadata(
                contents.metadata, path=path, size_bytes=contents.size
            )
        except (OSError, ValueError) as error:
            raise BadRequest(f"checkpoint {path} is damaged: {error}") from error
        if parse_path(path).kind == "external_weights":
            adapter = peft_files(record, contents, "include", "")
            record = replace(record, size_bytes=sum(file.size for file in adapter))
        return record, contents

    def record(self, path: str) -> Checkpoint:
        """What a state is; raises as `open`."""
        with self.open(path) as (_, record, _):
            return record

    def delete(self, path: str) -> None:
        """Remove a state; it is no error when there is none."""
        target = self.file(path)
        target.unlink(missing_ok=True)
        if target.parent.is_dir():
            _sync_directory(target.parent)

    def rename(self, path: str, name: str) -> str:
        """Give a state another name in the same place; returns its new path.

        Raises:
            Conflict: the name is taken.
            NotFound: there is no such state.
        """
        source = self.file(path)
        renamed = str(replace(parse_path(path), name=name))
        target = self.file(renamed)
        if target.exists():
            raise Conflict(f"{renamed} exists")
        try:
            source.rename(target)
        except FileNotFoundError:
            raise NotFound(f"no checkpoint {path}") from None
        _sync_directory(target.parent)
        return renamed

    def amend(self, path: str, **changes: Any) -> Checkpoint:
        """Write a state anew with another record; returns that.

        Args:
            path: of the state.
            changes: fields of the record and their values.
        """
        with self.open(path) as (source, record, contents):
            record = replace(record, **changes)
            with _whole(self.file(path)) as temporary:
                _copy(source, contents, record, temporary)
        return self.record(path)

    def copy(self, path: str, /, *, tenant: str, **changes: Any) -> Checkpoint:
        """Write a state again, under the path that is one of the `changes`; returns its record.

        Raises:
            Conflict: the new path is taken.
            NotFound: there is no such state, or none that the copy's tenant may read.
        """
        with self.open(path) as (source, record, contents):
            if not record.is_readable_by(tenant):
                raise NotFound(f"no checkpoint {path}")
            record = replace(record, tenant=tenant, **changes)
            self.write(record, lambda target, metadata: _copy(source, contents, record, target))
        return self.record(record.path)

    def scan(self) -> list[Checkpoint]:
        """All states of this directory; unreadable files are left out, with a warning."""
        found = []
        for source in sorted(self.root.glob("*/*/*.safetensors")):
            run, kind = source.parent.parent.name.replace("_", ":"), source.parent.name
            try:
                path = str(parse_path(str(CheckpointPath(run, kind, source.stem))))
                with source.open("rb") as handle:
                    found.append(self.describe(path, handle)[0])
            except (OSError, BadRequest) as error:
                log.warning("%s is not a checkpoint: %s", source, error)
        return found

    def claim(self) -> "Claim":
        """Become the one who cleans up here, unless another live engine is, and do so.

        Raises:
            BadRequest: the directory cannot be used.
        """
        try:
            return Claim(self.root)
        except OSError as error:
            raise BadRequest(f"{self.root} cannot hold saved states: {error}") from error


class Claim:
    """Holds the lock of a directory of states. Its first holder removes what was left half done."""

    def __init__(self, root: Path) -> None:
        make_private(root)
        self._handle = (root / LOCK_NAME).open("ab")
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # another engine uses the directory, and may be writing
            return
        for rest in root.glob("*/*/.*.part"):
            rest.unlink(missing_ok=True)

    def release(self) -> None:
        """Let another engine clean up."""
        self._handle.close()


def make_private(folder: Path) -> None:
    """Make a directory that its owner alone reads, unless it is there."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def now() -> float:
    """The creation time of a new record, seconds since the epoch."""
    return time.time()


def _copy(source: BinaryIO, contents: Contents, record: Checkpoint, target: Path) -> None:
    """Write the tensors of an open state to another file, with this record."""
    metadata = {**contents.metadata, METADATA_KEY: record.to_metadata()[METADATA_KEY]}
    entries = [(name, item.dtype, item.shape) for name, item in contents.tensors.items()]
    source.seek(contents.data_start)
    with target.open("wb") as copy:
        copy.write(make_header(entries, metadata))
        shutil.copyfileobj(source, copy, COPY_BYTES)


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """A temporary name beside `target` that takes its place, durably, unless an error comes."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        yield temporary
        with temporary.open("rb") as handle:
            os.fchmod(handle.fileno(), 0o600)
            os.fsync(handle.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_directory(target.parent)


def _sync_directory(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
