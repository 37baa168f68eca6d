"""Headers of safetensors files."""

import json
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from weft.engine.files.tensors import Tensor, make_header, read_contents

A = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
B = {"dtype": "F16", "shape": [4], "data_offsets": [24, 32]}


def raw_file(header: Any, num_bytes: int = 32) -> BytesIO:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return BytesIO(len(raw).to_bytes(8, "little") + raw + bytes(num_bytes))


def test_a_file_of_the_library_is_read() -> None:
    raw = save({"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.float16)}, {"k": "v"})
    contents = read_contents(BytesIO(raw))
    start = contents.data_start
    assert contents.tensors == {
        "a": Tensor("F32", (2, 3), start),
        "b": Tensor("F16", (4,), start + 24),
    }
    assert (contents.metadata, contents.size) == ({"k": "v"}, len(raw))


def test_the_library_reads_what_is_written() -> None:
    values: dict[str, np.ndarray] = {
        "x": np.arange(6, dtype=np.float32).reshape(3, 2),
        "y": np.zeros(1, np.float16),
    }
    header = make_header([("x", "F32", (3, 2)), ("y", "F16", (1,))], {"format": "pt"})
    found = load(header + values["x"].tobytes() + values["y"].tobytes())
    assert {name: array.tolist() for name, array in found.items()} == {
        name: array.tolist() for name, array in values.items()
    }
    assert len(header) % 8 == 0


def test_a_header_beyond_its_bound_is_not_read() -> None:
    raw = save({"a": np.ones(3, np.float32)})
    with pytest.raises(ValueError, match="at most 20"):
        read_contents(BytesIO(raw), max_header_bytes=20)


def test_what_follows_the_tensors_may_be_left_out() -> None:
    raw = save({"a": np.ones(3, np.float32)})
    assert read_contents(BytesIO(raw + b"more"), len(raw)).size == len(raw)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        pytest.param(BytesIO(b""), "not a safetensors file", id="empty"),
        pytest.param(BytesIO(b"\x80\x02}q\x00." + bytes(40)), "not a safetensors", id="pickle"),
        pytest.param(raw_file(b"{"), "not a safetensors", id="header of one byte"),
        pytest.param(raw_file(b"{]" * 8), "not JSON", id="not JSON"),
        pytest.param(raw_file(b"[" * 40_000), "not JSON", id="deep"),
        pytest.param(raw_file([1]), "not a map", id="list"),
        pytest.param(raw_file({"__metadata__": {"a": 1}}, 0), "metadata", id="metadata"),
        pytest.param(raw_file(b'{"a":1,"a":2}'), "repeats a key", id="repeated key"),
        pytest.param(raw_file({"a": {**A, "x": 1}}), "not described", id="unknown key"),
        pytest.param(raw_file({"a": {**A, "dtype": "F3"}}), "dtype 'F3'", id="dtype"),
        pytest.param(raw_file({"a": {**A, "dtype": ["F32"]}}), "dtype", id="dtype list"),
        pytest.param(raw_file({"a": {**A, "shape": [-2, -3]}}), "shape", id="negative"),
        pytest.param(raw_file({"a": {**A, "shape": [True, 6]}}), "shape", id="bool"),
        pytest.param(raw_file({"a": {**A, "shape": [2**60]}}), "shape", id="giant"),
        pytest.param(raw_file({"a": {**A, "data_offsets": [0]}}), "data_offsets", id="offsets"),
        pytest.param(raw_file({"a": {**A, "data_offsets": [0, 20]}}), "needs 24", id="short"),
        pytest.param(raw_file({"a": A, "b": {**B, "data_offsets": [16, 24]}}), "begin", id="over"),
        pytest.param(raw_file({"a": A, "b": {**B, "data_offsets": [28, 36]}}), "begin", id="hole"),
        pytest.param(raw_file({"a": A, "b": B}, 31), "the file at", id="truncated"),
        pytest.param(raw_file({"a": A, "b": B}, 33), "the file at", id="too long"),
    ],
)
def test_a_damaged_file_is_refused(file: BytesIO, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_contents(file)
