"""What is sent of a saved state: files put together from spans of the state's own, and few new bytes.

Nothing is converted or written: PEFT's file is another header before the same tensors.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import BinaryIO

from ...client.errors import BadRequest
from ...client.local_files import CONFIG_NAME, STATE_NAME, TENSORS_NAME
from .checkpoint import Checkpoint
from .peft_config import write_config
from .peft_tensors import to_key
from .tensors import Contents, make_header

UNEMBED_FOLDER = "unembed"
UNEMBED_CHOICES = ("include", "omit", "separate")


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes of the state's file."""

    start: int
    size: int


Piece = bytes | Span


@dataclass(frozen=True, slots=True)
class OutgoingFile:
    """One file as its receiver will see it."""

    name: str
    pieces: tuple[Piece, ...]

    @property
    def size(self) -> int:
        return sum(map(_size, self.pieces))


class Stream:
    """Files one after the other, readable from anywhere."""

    def __init__(self, files: Sequence[OutgoingFile]) -> None:
        self.files = tuple(files)
        self._pieces = [piece for file in files for piece in file.pieces if _size(piece)]
        self._ends = list(accumulate(map(_size, self._pieces)))
        self.size = self._ends[-1]

    def read(self, state: BinaryIO, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on, fewer at the end; `state` is the open file of the state."""
        parts = []
        index = bisect_right(self._ends, offset)
        while size > 0 and index < len(self._pieces):
            piece = self._pieces[index]
            inside = offset - (self._ends[index] - _size(piece))
            count = min(size, _size(piece) - inside)
            if isinstance(piece, bytes):
                parts.append(piece[inside : inside + count])
            else:
                state.seek(piece.start + inside)
                parts.append(state.read(count))
            offset, size, index = offset + count, size - count, index + 1
        return b"".join(parts)


def state_files(contents: Contents, record: Checkpoint | None = None) -> list[OutgoingFile]:
    """A state as it is kept, or with another record."""
    if record is None:
        return [OutgoingFile(STATE_NAME, (Span(0, contents.size),))]
    entries = [(name, tensor.dtype, tensor.shape) for name, tensor in contents.tensors.items()]
    header = make_header(entries, {**contents.metadata, **record.to_metadata()})
    span = Span(contents.data_start, contents.size - contents.data_start)
    return [OutgoingFile(STATE_NAME, (header, span))]


def peft_files(
    record: Checkpoint, contents: Contents, unembed: str, base_model: str
) -> list[OutgoingFile]:
    """A state as an adapter that peft loads.

    Args:
        record, contents: of the state.
        unembed: "include" the unembedding, "omit" it, or "separate" it into an adapter of its own
            in a folder beside.
        base_model: what the config is to name, "" the name in the record.

    Raises:
        BadRequest: nothing but the unembedding is trained, and it is not to be included.
    """
    names = sorted(name for name in contents.tensors if not is_moment(name))
    apart = [name for name in names if name.rpartition(".")[0] == record.unembed_site]
    if unembed == "include" or not apart:
        return _adapter(record, contents, names, base_model, "")
    layers = [name for name in names if name not in apart]
    if not layers:
        raise BadRequest(f"{record.path} trains nothing but the unembedding")
    files = _adapter(record, contents, layers, base_model, "")
    if unembed == "separate":
        files += _adapter(record, contents, apart, base_model, f"{UNEMBED_FOLDER}/")
    return files


def is_moment(name: str) -> bool:
    """Whether a tensor of a state belongs to the optimizer."""
    return name.startswith(("moment1.", "moment2."))


def _adapter(
    record: Checkpoint, contents: Contents, names: Sequence[str], base_model: str, folder: str
) -> list[OutgoingFile]:
    tensors = [contents.tensors[name] for name in names]
    entries = [
        (to_key(name), tensor.dtype, tensor.shape)
        for name, tensor in zip(names, tensors, strict=True)
    ]
    header = make_header(entries, {"format": "pt"})
    spans = [Span(tensor.start, tensor.size) for tensor in tensors]
    targets = {name.rpartition(".")[0].rpartition(".")[2] for name in names}
    config = write_config(record, sorted(targets), base_model)
    return [
        OutgoingFile(folder + CONFIG_NAME, (config,)),
        OutgoingFile(folder + TENSORS_NAME, (header, *spans)),
    ]


def _size(piece: Piece) -> int:
    return len(piece) if isinstance(piece, bytes) else piece.size
