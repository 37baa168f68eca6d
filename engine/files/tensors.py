"""Headers of safetensors files: read without trust, and written. No tensor is touched here.

A file is eight bytes of length, a JSON header, and the tensors one after the other without a gap.
Source: the format's description, https://github.com/huggingface/safetensors, "Format".
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, BinaryIO

MAX_HEADER_BYTES = 16 << 20
MAX_DIMS = 8
ALIGNMENT = 8  # of the first tensor
ITEM_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "F64": 8,
    "I64": 8,
    "U64": 8,
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where one tensor lies in a file."""

    dtype: str  # a key of `ITEM_BYTES`
    shape: tuple[int, ...]
    start: int  # from the beginning of the file

    @property
    def size(self) -> int:
        return prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class Contents:
    """What a safetensors file says of itself."""

    tensors: dict[str, Tensor]  # in the order in which they lie
    metadata: dict[str, str]
    data_start: int
    size: int  # of the file


def read_contents(
    handle: BinaryIO, size: int | None = None, max_header_bytes: int = MAX_HEADER_BYTES
) -> Contents:
    """Read the header of a file and check it against the file's size.

    Args:
        handle: the open file.
        size: bytes of it that count; all unless given.
        max_header_bytes: a longer header is not read.

    Raises:
        ValueError: it is no safetensors file, or its header contradicts itself or the file.
    """
    size = handle.seek(0, 2) if size is None else size
    handle.seek(0)
    length = int.from_bytes(handle.read(8), "little")
    if size < 8 or not 2 <= length <= size - 8:
        raise ValueError("not a safetensors file")
    if length > max_header_bytes:
        raise ValueError(f"its header has {length} bytes, at most {max_header_bytes}")
    try:
        header: Any = json.loads(handle.read(length), object_pairs_hook=_unique)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"its header is not JSON: {type(error).__name__}") from None
    if not isinstance(header, dict):
        raise ValueError("its header is not a map")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(
        isinstance(value, str) for value in metadata.values()
    ):
        raise ValueError("its metadata is not a map of strings")
    start = 8 + length
    tensors = {name: _tensor(name, fields, start) for name, fields in header.items()}
    ordered = dict(sorted(tensors.items(), key=lambda item: (item[1].start, item[1].size)))
    end = start
    for name, tensor in ordered.items():
        if tensor.start != end:
            raise ValueError(f"{name[:120]!r} does not begin where the tensor before it ends")
        end += tensor.size
    if end != size:
        raise ValueError(f"its tensors end at byte {end}, the file at {size}")
    return Contents(ordered, metadata, start, size)


def make_header(
    entries: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> bytes:
    """The first bytes of a file that holds tensors of these names, dtypes and shapes in order."""
    fields: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, dtype, shape in entries:
        end = offset + prod(shape) * ITEM_BYTES[dtype]
        fields[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    raw = json.dumps(fields, separators=(",", ":")).encode()
    raw += b" " * (-(8 + len(raw)) % ALIGNMENT)
    return len(raw).to_bytes(8, "little") + raw


def _tensor(name: str, fields: Any, data_start: int) -> Tensor:
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name[:120]!r} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise ValueError(f"{name[:120]!r} has the dtype {str(dtype)[:40]!r}")
    if not _are_counts(shape) or len(shape) > MAX_DIMS:
        raise ValueError(f"{name[:120]!r} has the shape {str(shape)[:80]}")
    if not _are_counts(offsets) or len(offsets) != 2:
        raise ValueError(f"{name[:120]!r} has the data_offsets {str(offsets)[:80]}")
    tensor = Tensor(dtype, tuple(shape), data_start + offsets[0])
    if offsets[1] - offsets[0] != tensor.size:
        raise ValueError(
            f"{name[:120]!r} of shape {shape} needs {tensor.size} bytes and has "
            f"{offsets[1] - offsets[0]}"
        )
    return tensor


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(
        type(value) is int and 0 <= value < 2**48 for value in values
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("its header repeats a key")
    return fields
