"""Named arrays of a message to raw frames and back.

Values are little-endian. `choose_encodings` finds what need not be sent: targets
that are the shifted input, and values that repeat. `unpack_arrays` trusts nothing: what a header
declares is compared with the bytes that came before anything is allocated. Arrays of encoding
"raw" decode to read-only views of the frames; frames that lie unaligned in memory are copied.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .limits import limit
from .messages import Array
from .wire import Buffer, Malformed

NumpyArray = NDArray[Any]

DTYPES: dict[str, np.dtype[Any]] = {
    "int32": np.dtype("<i4"),
    "float32": np.dtype("<f4"),
    "uint8": np.dtype("u1"),  # the bytes of a file, always "raw"
}
ITEM_BYTES = 4  # of a column of numbers

_MAX_ELEMENTS = limit("array_elements")
_MAX_DIMS = limit("array_dims")
_MAX_FRAMES = limit("frames")


# --- packing --------------------------------------------------------------------------------------


def pack_arrays(
    named: Mapping[str, NumpyArray], encodings: Mapping[str, str] | None = None
) -> tuple[list[Array], list[memoryview]]:
    """Describe arrays and lay them out as frames, without copying what is contiguous.

    Args:
        named: int32, float32 or uint8 arrays by name, "tokens" and "lengths" first if there are any.
        encodings: of those that are not "raw", as `choose_encodings` finds them.

    Returns:
        Descriptions, in the order of `named`, and the frames; both own or share the memory given.
    """
    arrays: list[Array] = []
    frames: list[memoryview] = []
    for name, values in named.items():
        encoding = "raw" if encodings is None or not values.size else encodings.get(name, "raw")
        frame, value = -1, 0.0
        if encoding == "constant":
            value = float(values.flat[0])
        else:
            frame = len(frames)
            frames.append(_frame(_payload(values, encoding, named)))
        shape = list(values.shape)
        arrays.append(Array(name, values.dtype.name, shape, encoding, frame, value))
    return arrays, frames


def choose_encodings(
    named: Mapping[str, NumpyArray], known: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The shortest encoding of every column beside "tokens" and "lengths", one value a token each.

    Args:
        named: the columns.
        known: the choice for columns that these are slices of; what holds there holds here.
    """
    found: dict[str, str] = {}
    for name, values in named.items():
        before = (known or {}).get(name, "runs")
        if name in ("tokens", "lengths"):
            continue
        if before in ("runs", "per_datum"):
            before, _ = choose_encoding(values, named["lengths"], named["tokens"])
        found[name] = before
    return found


def choose_encoding(
    values: NumpyArray, lengths: NumpyArray, tokens: NumpyArray | None
) -> tuple[str, NDArray[np.intp]]:
    """The shortest encoding of a column, one value a token.

    Args:
        values: the column; values count as equal when their bits are.
        lengths: elements of each datum, at least 1 each, as many together as there are values.
        tokens: the column that targets may repeat, shifted by one.

    Returns:
        The encoding, and for "runs" and "per_datum" the indices where the value changes.
    """
    nothing = np.empty(0, np.intp)
    if not len(values):
        return "raw", nothing
    if tokens is not None and _is_shifted(values, tokens, lengths):
        return "shifted", nothing
    bits = values.view(np.int32)
    is_change = bits[1:] != bits[:-1]
    num_changes = int(np.count_nonzero(is_change))
    if num_changes == 0:
        return "constant", nothing
    if num_changes < len(lengths) < 2 * (num_changes + 1):
        changes = np.flatnonzero(is_change) + 1
        if np.isin(changes, np.cumsum(lengths, dtype=np.int64)).all():
            return "per_datum", changes
    if 2 * (num_changes + 1) < len(values):
        return "runs", np.flatnonzero(is_change) + 1
    return "raw", nothing


def _is_shifted(values: NumpyArray, tokens: NumpyArray, lengths: NumpyArray) -> bool:
    if values.dtype != np.int32 or values.shape != tokens.shape:
        return False
    same = values[:-1] == tokens[1:]
    same[np.cumsum(lengths[:-1], dtype=np.int64) - 1] = True
    return bool(same.all())


def _payload(values: NumpyArray, encoding: str, named: Mapping[str, NumpyArray]) -> NumpyArray:
    match encoding:
        case "shifted" | "per_datum":
            ends = np.cumsum(named["lengths"], dtype=np.int64)
            return values[ends - 1]
        case "runs":
            starts = np.concatenate(([0], _changes(values)))
            counts = np.diff(starts, append=len(values)).astype(np.int32)
            return np.concatenate((values[starts].view(np.int32), counts))
        case _:
            return values


def _changes(values: NumpyArray) -> NDArray[np.intp]:
    bits = values.view(np.int32)
    return np.flatnonzero(bits[1:] != bits[:-1]) + 1


def _frame(values: NumpyArray) -> memoryview:
    little = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    return memoryview(little.reshape(-1).view(np.uint8).data)


# --- unpacking ------------------------------------------------------------------------------------


def unpack_arrays(arrays: Sequence[Array], frames: Sequence[Buffer]) -> dict[str, NumpyArray]:
    """Decode the arrays of a message.

    Returns:
        Arrays by name. Those of encoding "raw" are views of `frames` and live as long as they do.

    Raises:
        Malformed: a description contradicts itself, the other arrays, or the frames.
    """
    if len(frames) > _MAX_FRAMES:
        raise Malformed(f"{len(frames)} frames, at most {_MAX_FRAMES}")
    used: list[int] = []
    decoded: dict[str, NumpyArray] = {}
    for array in arrays:
        _check(array, decoded)
        decoded[array.name] = _read(array, frames, decoded)
        if array.encoding != "constant":
            used.append(array.frame)
    if sorted(used) != list(range(len(frames))):
        raise Malformed(f"{len(frames)} frames, of which arrays use {sorted(used)}")
    return decoded


def _check(array: Array, earlier: Mapping[str, NumpyArray]) -> None:
    if array.name in earlier:
        raise Malformed(f"array {array.name!r} is there twice")
    if array.dtype not in DTYPES:
        raise Malformed(f"array {array.name!r} has dtype {array.dtype!r}, not int32 or float32")
    if array.dtype == "uint8" and array.encoding != "raw":
        raise Malformed(f"array {array.name!r} is uint8 and {array.encoding}, not raw")
    if not 1 <= len(array.shape) <= _MAX_DIMS:
        raise Malformed(
            f"array {array.name!r} has {len(array.shape)} dimensions, not 1 to {_MAX_DIMS}"
        )
    elements = 1
    for size in array.shape:
        if not 0 <= size <= _MAX_ELEMENTS:
            raise Malformed(f"array {array.name!r} has shape {array.shape}")
        elements *= size
    if elements > _MAX_ELEMENTS:
        raise Malformed(f"array {array.name!r} has {elements} elements, at most {_MAX_ELEMENTS}")


def _read(array: Array, frames: Sequence[Buffer], earlier: Mapping[str, NumpyArray]) -> NumpyArray:
    dtype = DTYPES[array.dtype]
    if array.encoding == "constant":
        return _constant(array, dtype)
    if not 0 <= array.frame < len(frames):
        raise Malformed(f"array {array.name!r} names frame {array.frame} of {len(frames)}")
    frame = frames[array.frame]
    match array.encoding:
        case "raw":
            elements = int(np.prod(array.shape, dtype=np.int64))
            return _view(array, frame, elements, dtype).reshape(array.shape)
        case "runs":
            return _runs(array, frame, dtype)
        case "per_datum":
            lengths = _lengths(array, earlier)
            return np.repeat(_view(array, frame, len(lengths), dtype), lengths)
        case "shifted":
            return _shifted(array, frame, earlier)
        case _:
            pass
    raise Malformed(f"array {array.name!r} has the unknown encoding {array.encoding!r}")


def _view(
    array: Array,
    frame: Buffer,
    elements: int,
    dtype: np.dtype[Any],
) -> NumpyArray:
    num_bytes = len(memoryview(frame).cast("B")) if isinstance(frame, memoryview) else len(frame)
    if num_bytes != elements * dtype.itemsize:
        raise Malformed(
            f"array {array.name!r} ({array.encoding}, shape {array.shape}) needs "
            f"{elements * dtype.itemsize} bytes, its frame has {num_bytes}"
        )
    values: NumpyArray = np.frombuffer(frame, dtype)
    if not values.flags.aligned:
        values = values.copy()
    values.flags.writeable = False
    return values


def _one_dim(array: Array) -> int:
    if len(array.shape) != 1:
        raise Malformed(f"array {array.name!r} is {array.encoding} and has shape {array.shape}")
    return array.shape[0]


def _constant(array: Array, dtype: np.dtype[Any]) -> NumpyArray:
    if array.frame != -1:
        raise Malformed(f"array {array.name!r} is constant and names frame {array.frame}")
    if array.dtype == "int32" and not (
        array.value.is_integer() and -(2**31) <= array.value < 2**31
    ):
        raise Malformed(f"array {array.name!r} is int32 and holds {array.value}")
    with np.errstate(over="ignore"):
        return np.full(array.shape, array.value, dtype)


def _lengths(array: Array, earlier: Mapping[str, NumpyArray]) -> NumpyArray:
    """The lengths of a message's datums, which must add up to the elements of `array`."""
    lengths = earlier.get("lengths")
    if lengths is None or lengths.dtype != np.int32 or lengths.ndim != 1:
        raise Malformed(f"array {array.name!r} is {array.encoding}, and no lengths come before it")
    total = int(lengths.sum(dtype=np.int64))
    if len(lengths) and int(lengths.min()) < 1:
        raise Malformed(f"lengths hold {int(lengths.min())}")
    if _one_dim(array) != total:
        raise Malformed(f"array {array.name!r} has shape {array.shape}, lengths add up to {total}")
    return lengths


def _runs(array: Array, frame: Buffer, dtype: np.dtype[Any]) -> NumpyArray:
    num_runs, rest = divmod(memoryview(frame).nbytes, 2 * ITEM_BYTES)
    if rest:
        raise Malformed(f"array {array.name!r} is runs in a frame of {memoryview(frame).nbytes}")
    both = _view(array, frame, 2 * num_runs, DTYPES["int32"])
    values, counts = both[:num_runs].view(dtype), both[num_runs:]
    total = int(counts.sum(dtype=np.int64))
    if num_runs and int(counts.min()) < 1:
        raise Malformed(f"array {array.name!r} has a run of {int(counts.min())}")
    if _one_dim(array) != total:
        raise Malformed(f"array {array.name!r} has shape {array.shape}, its runs hold {total}")
    return np.repeat(values, counts)


def _shifted(array: Array, frame: Buffer, earlier: Mapping[str, NumpyArray]) -> NumpyArray:
    lengths = _lengths(array, earlier)
    tokens = earlier.get("tokens")
    if array.dtype != "int32" or tokens is None or tokens.dtype != np.int32:
        raise Malformed(f"array {array.name!r} is shifted, and no tokens come before it")
    if list(tokens.shape) != array.shape:
        raise Malformed(f"array {array.name!r} has {array.shape} elements, tokens {tokens.shape}")
    values = np.empty(array.shape, DTYPES["int32"])
    values[:-1] = tokens[1:]
    ends = np.cumsum(lengths, dtype=np.int64) - 1
    values[ends] = _view(array, frame, len(lengths), DTYPES["int32"])
    return values
