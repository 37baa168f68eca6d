"""Columns survive their encodings bit by bit, and what contradicts itself is refused."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from weft.client.arrays import choose_encodings, pack_arrays, unpack_arrays
from weft.client.messages import Array
from weft.client.wire import Malformed

LENGTHS = np.array([5, 1, 7], np.int32)
TOKENS = np.arange(100, 113, dtype=np.int32)
FRAME = np.arange(6, dtype=np.int32).tobytes()


def floats(values: object) -> np.ndarray:
    return np.asarray(values, np.float32)


def ints(values: object) -> np.ndarray:
    return np.asarray(values, np.int32)


def shifted_targets() -> np.ndarray:
    targets = np.empty_like(TOKENS)
    targets[:-1] = TOKENS[1:]
    targets[[4, 5, 12]] = [7, 8, 9]
    return targets


def pack(column: np.ndarray) -> tuple[Array, dict[str, np.ndarray]]:
    """How a column is encoded among the tokens and lengths above, and what is decoded again."""
    named = {"tokens": TOKENS, "lengths": LENGTHS, "column": column}
    arrays, frames = pack_arrays(named, choose_encodings(named))
    return arrays[2], unpack_arrays(arrays, frames)


@pytest.mark.parametrize(
    ("column", "encoding"),
    [
        pytest.param(np.full(13, 0.1, np.float32), "constant", id="constant"),
        pytest.param(np.full(13, -0.0, np.float32), "constant", id="negative zero"),
        pytest.param(np.repeat(floats([1, -1, 0.1]), LENGTHS), "per_datum", id="per datum"),
        pytest.param(np.repeat(floats([0, 1]), [9, 4]), "runs", id="runs"),
        pytest.param(shifted_targets(), "shifted", id="shifted"),
        pytest.param(np.linspace(-1, 0, 13, dtype=np.float32), "raw", id="raw"),
        pytest.param(TOKENS * 2, "raw", id="integers"),
        pytest.param(floats([0.0, -0.0] * 6 + [0.0]), "raw", id="zeros that differ in sign"),
        pytest.param(floats([np.nan] + [1] * 12), "runs", id="nan"),
    ],
)
def test_a_column_takes_its_shortest_encoding(column: np.ndarray, encoding: str) -> None:
    array, decoded = pack(column)
    assert array.encoding == encoding
    assert decoded["column"].dtype == column.dtype
    assert decoded["column"].tobytes() == column.tobytes()


def test_one_wrong_target_is_not_taken_for_shifted() -> None:
    targets = shifted_targets()
    targets[2] += 1
    array, decoded = pack(targets)
    assert array.encoding == "raw"
    assert decoded["column"].tobytes() == targets.tobytes()


@pytest.mark.parametrize("seed", range(20))
def test_random_columns_survive(seed: int) -> None:
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, 6, generator.integers(1, 8)).astype(np.int32)
    total = int(lengths.sum())
    tokens = generator.integers(0, 3, total).astype(np.int32)
    named = {"tokens": tokens, "lengths": lengths}
    for index in range(4):
        steps = generator.integers(0, 2, total) * (generator.random(total) < index / 3)
        named[f"f{index}"] = np.cumsum(steps).astype(np.float32)
        named[f"i{index}"] = np.roll(tokens, -1) + np.cumsum(steps).astype(np.int32) // 3
    decoded = unpack_arrays(*pack_arrays(named, choose_encodings(named)))
    assert {name: values.tobytes() for name, values in named.items()} == {
        name: values.tobytes() for name, values in decoded.items()
    }


def test_aligned_frames_are_views_and_unaligned_ones_are_copied() -> None:
    aligned = np.arange(7, dtype=np.int32)
    memory = np.zeros(4 * 7 + 1, np.uint8)
    memory[1:] = aligned.view(np.uint8)
    unaligned = memory[1:].data
    description = [Array(name="x", dtype="int32", shape=[7], frame=0)]
    view = unpack_arrays(description, [aligned.data.cast("B")])["x"]
    copy = unpack_arrays(description, [unaligned])["x"]
    assert np.shares_memory(view, aligned)
    assert not np.shares_memory(copy, memory)
    assert copy.flags.aligned
    assert copy.tolist() == view.tolist() == list(range(7))


def test_decoded_arrays_are_read_only() -> None:
    decoded = unpack_arrays(*pack_arrays({"x": np.zeros(3, np.float32)}))
    with pytest.raises(ValueError, match="read-only"):
        decoded["x"][0] = 1


def test_the_bytes_of_a_file_travel_as_they_are() -> None:
    data = np.arange(251, dtype=np.uint8)
    arrays, frames = pack_arrays({"data": data})
    assert [len(frame) for frame in frames] == [251]
    assert unpack_arrays(arrays, frames)["data"].tobytes() == data.tobytes()


def test_shapes_and_empty_arrays_survive() -> None:
    named = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.empty(0, np.int32)}
    decoded = unpack_arrays(*pack_arrays(named))
    assert decoded["a"].tolist() == named["a"].tolist()
    assert decoded["b"].shape == (0,)


def describe(**changes: Any) -> list[Array]:
    fields: dict[str, Any] = {"name": "x", "dtype": "int32", "shape": [6], "frame": 0}
    return [Array(**{**fields, **changes})]


BASE: list[Array] = [
    Array(name="tokens", dtype="int32", shape=[6], frame=0),
    Array(name="lengths", dtype="int32", shape=[2], frame=1),
]


def beside(lengths: list[int], frame: bytes, **changes: Any) -> tuple[list[Array], list[bytes]]:
    """A description and its frames, of an array beside tokens and lengths."""
    fields = {"frame": 2, **changes}
    return [*BASE, *describe(**fields)], [FRAME, ints(lengths).tobytes(), frame]


@pytest.mark.parametrize(
    ("arrays", "frames", "message"),
    [
        pytest.param(describe(), [FRAME[:-1]], "needs 24 bytes", id="truncated"),
        pytest.param(describe(), [FRAME + b"1234"], "needs 24 bytes", id="too long"),
        pytest.param(describe(), [], "frame 0 of 0", id="no frame"),
        pytest.param(describe(frame=-1), [FRAME], "frame -1", id="negative frame"),
        pytest.param(describe(), [FRAME, FRAME], "2 frames, of which", id="unused frame"),
        pytest.param(describe() * 2, [FRAME], "there twice", id="same name"),
        pytest.param(describe(dtype="object"), [FRAME], "dtype 'object'", id="dtype"),
        pytest.param(
            describe(dtype="uint8", encoding="runs"), [FRAME], "not raw", id="runs of bytes"
        ),
        pytest.param(describe(dtype="int64"), [FRAME], "dtype 'int64'", id="wide dtype"),
        pytest.param(describe(shape=[]), [FRAME], "0 dimensions", id="no dimension"),
        pytest.param(describe(shape=[1] * 5), [FRAME], "5 dimensions", id="many dimensions"),
        pytest.param(describe(shape=[-6]), [FRAME], "shape", id="negative size"),
        pytest.param(describe(shape=[2**40]), [FRAME], "shape", id="giant"),
        pytest.param(describe(shape=[2**21, 2**21]), [FRAME], "elements", id="giant product"),
        pytest.param(describe(encoding="pickle"), [FRAME], "unknown encoding", id="encoding"),
        pytest.param(
            describe(encoding="constant", frame=-1, shape=[2**50]), [], "shape", id="giant constant"
        ),
        pytest.param(
            describe(encoding="constant", frame=-1, value=0.5), [], "holds 0.5", id="half an int"
        ),
        pytest.param(
            describe(encoding="constant", frame=-1, value=float("nan")), [], "nan", id="nan int"
        ),
        pytest.param(describe(encoding="constant"), [FRAME], "names frame", id="constant, frame"),
        pytest.param(describe(encoding="per_datum"), [FRAME], "no lengths", id="no lengths"),
        pytest.param(describe(encoding="shifted"), [FRAME], "no lengths", id="shifted alone"),
        pytest.param(
            *beside([2, 5], bytes(8), encoding="per_datum"), "add up to 7", id="lengths too long"
        ),
        pytest.param(
            *beside([0, 6], bytes(8), encoding="per_datum"), "lengths hold 0", id="empty datum"
        ),
        pytest.param(
            *beside([-1, 7], bytes(8), encoding="per_datum"), "hold -1", id="negative length"
        ),
        pytest.param(
            *beside([3, 3], bytes(12), encoding="per_datum"), "needs 8 bytes", id="3 of 2 datums"
        ),
        pytest.param(
            *beside([3, 3], bytes(4), encoding="shifted"), "needs 8 bytes", id="1 of 2 ends"
        ),
        pytest.param(
            *beside([3, 3], bytes(8), encoding="shifted", dtype="float32"),
            "shifted",
            id="shifted floats",
        ),
        pytest.param(
            *beside([3, 3], bytes(8), encoding="per_datum", shape=[2, 3]),
            "shape",
            id="per datum in two dimensions",
        ),
        pytest.param(describe(encoding="runs"), [bytes(12)], "runs in a frame", id="odd runs"),
        pytest.param(
            describe(encoding="runs"), [ints([1, 2, 3, 4]).tobytes()], "hold 7", id="long runs"
        ),
        pytest.param(
            describe(encoding="runs"),
            [ints([1, 2, -1, 7]).tobytes()],
            "run of -1",
            id="negative run",
        ),
        pytest.param(
            describe(encoding="runs", shape=[2**22]),
            [ints([1, 1, 2**31 - 1, 2**31 - 1]).tobytes()],
            "hold 4294967294",
            id="giant runs",
        ),
        pytest.param(describe(), [FRAME] * 65, "65 frames", id="many frames"),
    ],
)
def test_what_contradicts_itself_is_refused(
    arrays: list[Array], frames: list[bytes], message: str
) -> None:
    with pytest.raises(Malformed, match=message):
        unpack_arrays(arrays, frames)


def test_arrays_that_come_too_early_are_refused() -> None:
    named: Mapping[str, np.ndarray] = {
        "column": np.repeat(floats([1, 2]), 3),
        "tokens": np.arange(6, dtype=np.int32),
        "lengths": ints([3, 3]),
    }
    arrays, frames = pack_arrays(named, choose_encodings(named))
    with pytest.raises(Malformed, match="no lengths come before it"):
        unpack_arrays(arrays, frames)
