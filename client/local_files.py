"""Adapters and states as files on the caller's machine: read to be sent, written as they come.

Files appear whole: they are written under other names, which go away when something fails.
"""

import os
import secrets
import tarfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from .arguments import require_type, shown
from .errors import BadRequest, EngineFailed
from .limits import limit

CONFIG_NAME = "adapter_config.json"
TENSORS_NAME = "adapter_model.safetensors"
STATE_NAME = "state.safetensors"
_SENT = (TENSORS_NAME, CONFIG_NAME)  # in the order in which they are sent
_MOST = {TENSORS_NAME: "upload_bytes", CONFIG_NAME: "config_bytes"}
_PICKLED = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth")
_RECEIVED = frozenset(
    {CONFIG_NAME, TENSORS_NAME, f"unembed/{CONFIG_NAME}", f"unembed/{TENSORS_NAME}", STATE_NAME}
)
_COPY_BYTES = 1 << 20

Read = Callable[[int], bytes]
PathLike = str | os.PathLike[str]
Source = PathLike | Mapping[str, bytes]


class Adapter:
    """The two files of an adapter, open one after the other.

    Args:
        source: a directory as peft saves it, of which other files are left alone, or the two files
            by their names.

    Raises:
        BadRequest: one of the two is missing, too large, or pickled.
    """

    def __init__(self, source: Source) -> None:
        _check_given(source)
        self.sizes: dict[str, int] = {}
        with ExitStack() as stack:
            self._handles = [stack.enter_context(_open(source, name)) for name in _SENT]
            for name, handle in zip(_SENT, self._handles, strict=True):
                size = self.sizes[name] = handle.seek(0, os.SEEK_END)
                handle.seek(0)
                if size > limit(_MOST[name]):
                    most = limit(_MOST[name])
                    raise BadRequest(f"{name} has {size} bytes, at most {most}", "too_large")
            self._stack = stack.pop_all()

    def read(self, size: int) -> bytes:
        """The next bytes of both, as many as asked for unless it is the end."""
        data = b""
        for handle in self._handles:
            data += handle.read(size - len(data))
        return data

    def __enter__(self) -> "Adapter":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def write_folder(
    folder: PathLike, files: Sequence[tuple[str, int]], read: Read, overwrite: bool
) -> Path:
    """Write files of these names and sizes into a directory, which is made.

    Raises:
        BadRequest: one of them is there and is not to be overwritten, or nothing can be written.
    """
    folder = _place("directory", folder)
    _check_names(files)
    targets = [folder / name for name, _ in files]
    with ExitStack() as stack:
        temporary = [stack.enter_context(_whole(target, overwrite)) for target in targets]
        for path, (_, size) in zip(temporary, files, strict=True):
            with path.open("wb") as handle:
                for data in _pieces(read, size):
                    handle.write(data)
    return folder


def write_archive(
    target: PathLike, files: Sequence[tuple[str, int]], read: Read, overwrite: bool
) -> Path:
    """Write files of these names and sizes into one tar.

    Raises:
        BadRequest: it is there and is not to be overwritten, or cannot be written.
    """
    target = _place("target", target)
    _check_names(files)
    with (
        _whole(target, overwrite) as temporary,
        tarfile.TarFile(temporary, "w", copybufsize=_COPY_BYTES) as archive,
    ):
        for name, size in files:
            member = tarfile.TarInfo(name)
            member.size, member.mode = size, 0o644
            archive.addfile(member, _Member(read))
    return target


def _place(name: str, given: object) -> Path:
    if not isinstance(given, str | os.PathLike) or not os.fspath(given):
        raise BadRequest(f"{name} is {shown(given)}, not a path")
    return Path(os.fsdecode(given))


class _Member:
    """What a tar reads a member from."""

    def __init__(self, read: Read) -> None:
        self._read = read

    def read(self, size: int = 0, /) -> bytes:
        data = self._read(size)
        if len(data) < size:
            raise EngineFailed(f"a download ended {size - len(data)} bytes too early")
        return data


def _pieces(read: Read, size: int) -> Iterator[bytes]:
    while size:
        data = read(min(size, _COPY_BYTES))
        if not data:
            raise EngineFailed(f"a download ended {size} bytes too early")
        size -= len(data)
        yield data


def _check_names(files: Sequence[tuple[str, int]]) -> None:
    for name, _ in files:
        if name not in _RECEIVED:
            raise EngineFailed(f"the server sends a file {name[:80]!r}")


def _open(source: Source, name: str) -> BinaryIO:
    return (
        BytesIO(source[name]) if isinstance(source, Mapping) else (Path(source) / name).open("rb")
    )


def _check_given(source: Source) -> None:
    if isinstance(source, Mapping):
        where, names = "the adapter", set(source)
        for name, content in source.items():
            require_type(name, content, bytes, "bytes")
        for name in sorted(names.difference(_SENT)):
            if TENSORS_NAME in names or name not in _PICKLED:
                raise BadRequest(f"{name!r} is not taken; an adapter is {' and '.join(_SENT)}")
    else:
        where, folder = str(source), Path(source)
        if not folder.is_dir():
            raise BadRequest(f"{folder} is no directory")
        names = {path.name for path in folder.iterdir()}
    for name in _PICKLED:
        if name in names and TENSORS_NAME not in names:
            raise BadRequest(f"{where} has {name}, which is pickled; save it as {TENSORS_NAME}")
    for name in _SENT:
        if name not in names:
            raise BadRequest(f"{where} lacks {name}")


@contextmanager
def _whole(target: Path, overwrite: bool) -> Generator[Path, None, None]:
    """A name beside `target` that takes its place unless an error comes."""
    if target.exists() and not overwrite:
        raise BadRequest(f"{target} exists; pass overwrite=True to replace it", "conflict")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadRequest(f"{target.parent} cannot be a directory: {error.strerror}") from None
    if not os.access(target.parent, os.W_OK):
        raise BadRequest(f"nothing can be written into {target.parent}")
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
