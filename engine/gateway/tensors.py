"""Arrays inside protobuf messages: raw little-endian bytes, with a dtype and a shape beside them."""

from math import prod
from typing import Any

import numpy as np

from ...client.errors import BadRequest
from ...client.tensor_data import NumpyArray, TensorData
from ...client.wire import Malformed
from .protobuf import Values
from .schema import FLOAT32, INT32, INT64

TOKENS = np.dtype("<i4")
LOGPROBS = np.dtype("<f4")
INDICES = np.dtype("<i8")
_READ: dict[int, np.dtype[Any]] = {FLOAT32: LOGPROBS, INT64: INDICES}  # the SDK sends no others
_DTYPES = {LOGPROBS: FLOAT32, INDICES: INT64, TOKENS: INT32}


def view(name: str, data: "memoryview | bytes", dtype: np.dtype[Any]) -> NumpyArray:
    """The values that a piece of a body holds, which may lie unaligned in memory.

    Raises:
        Malformed: it ends inside a value.
    """
    if len(data) % dtype.itemsize:
        raise Malformed(f"{name} has {len(data)} bytes, which are no {dtype.name}s")
    return np.frombuffer(data, dtype)


def read_tensor(name: str, fields: Values) -> TensorData:
    """A `Tensor`; its arrays are views of the body, but for the indices of a sparse one.

    Raises:
        BadRequest: no dtype that the SDK sends, or a shape or indices that do not fit.
    """
    dtype = _READ.get(fields.get("dtype", 0))
    if dtype is None:
        raise BadRequest(f"{name} has dtype {fields.get('dtype', 0)}, not float32 (1) or int64 (2)")
    shape: list[int] | None = fields.get("shape") or None
    if shape is not None and min(shape) < 0:
        raise BadRequest(f"{name} has shape {shape}")
    sparse = fields.get("sparse_csr")
    if sparse is None:
        values = view(name, fields.get("dense", b""), dtype)
        if shape is None or shape == [len(values)]:
            return TensorData(values)
        if prod(shape) != len(values):
            raise BadRequest(f"{name} has {len(values)} values, not those of shape {shape}")
        return TensorData(values.reshape(shape))
    try:
        return TensorData(
            view("values", sparse.get("values", b""), dtype),
            shape=shape,
            sparse_crow_indices=view("crow_indices", sparse.get("crow_indices", b""), INDICES),
            sparse_col_indices=view("col_indices", sparse.get("col_indices", b""), INDICES),
        )
    except BadRequest as error:
        raise type(error)(f"{name}: {error}", error.code) from None


def write_tensor(tensor: TensorData) -> Values:
    """A `Tensor`, sparse if it is."""
    told: Values = {"dtype": dtype_of(tensor.array), "shape": tensor.shape}
    if tensor.csr is None:
        return {**told, "dense": to_bytes(tensor.array)}
    indices = {
        "crow_indices": to_bytes(tensor.csr.crow),
        "col_indices": to_bytes(tensor.csr.cols),
    }
    return {**told, "sparse_csr": {"values": to_bytes(tensor.array), **indices}}


def dtype_of(array: NumpyArray) -> int:
    """The number that says what an array holds."""
    return _DTYPES[array.dtype]


def to_bytes(array: NumpyArray, dtype: np.dtype[Any] | None = None) -> memoryview:
    """The bytes of an array, not copied where its memory holds them as they are."""
    return np.ascontiguousarray(array, dtype).reshape(-1).view(np.uint8).data
