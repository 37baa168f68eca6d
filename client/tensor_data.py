"""The array of a training example or an output: numpy inside, lists and torch tensors at the edge.

A matrix may be sparse: only some of its places are listed, and the others are padding.

torch is never imported here unless its caller hands a torch tensor over or asks for one.
"""

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from .csr import Csr
from .errors import BadRequest

if TYPE_CHECKING:
    import torch

NumpyArray = NDArray[Any]

DTYPE_NAMES = ("int64", "float32")

_INT32, _INT64, _FLOAT32 = np.dtype(np.int32), np.dtype(np.int64), np.dtype(np.float32)


class TensorData:
    """A flat or shaped array of integers or floats, or a sparse matrix of them.

    Arrays are kept as they are given, without a copy: change them only after the call that takes
    them has returned. Integers keep their width in memory and are "int64" by name.

    Args:
        data: a list, a numpy array or a torch tensor.
        dtype: "int64" or "float32"; None goes by the data.
        shape: None keeps the shape of the data; of a sparse matrix [N, K], and needed.
        sparse_crow_indices: makes a sparse matrix of the data, which then holds the listed values
            in the order of rows, then columns; row i has those from `sparse_crow_indices[i]` on.
        sparse_col_indices: the column of each listed value.

    Raises:
        BadRequest: no array of numbers, another dtype, or a shape or indices that do not fit.
    """

    __slots__ = ("array", "csr")

    array: NumpyArray  # of a sparse matrix the listed values
    csr: Csr | None  # of a sparse matrix the listed places

    def __init__(
        self,
        data: "Sequence[int] | Sequence[float] | NumpyArray | torch.Tensor",
        dtype: str | None = None,
        shape: Sequence[int] | None = None,
        sparse_crow_indices: "Sequence[int] | NumpyArray | None" = None,
        sparse_col_indices: "Sequence[int] | NumpyArray | None" = None,
    ) -> None:
        self.csr = None
        if sparse_crow_indices is not None or sparse_col_indices is not None:
            self.csr = _csr(sparse_crow_indices, sparse_col_indices, shape)
            shape = [len(self.csr.cols)]
        elif dtype is None and shape is None and is_kept(data):
            self.array = data
            return
        if dtype is not None and dtype not in DTYPE_NAMES:
            raise BadRequest(f"dtype {dtype!r} is neither 'int64' nor 'float32'")
        values = to_array(data, dtype)
        if shape is not None and values.shape != tuple(shape):
            try:
                values = values.reshape(tuple(shape))
            except ValueError:
                raise BadRequest(f"{values.size} values do not have shape {list(shape)}") from None
        self.array = values

    @classmethod
    def from_numpy(cls, array: NumpyArray) -> "TensorData":
        """Wrap a numpy array."""
        return cls(array)

    @classmethod
    def from_torch(cls, tensor: "torch.Tensor") -> "TensorData":
        """Wrap a torch tensor; one on the CPU is not copied."""
        return cls(tensor)

    @classmethod
    def from_torch_sparse(cls, tensor: "torch.Tensor", pad_value: int = 0) -> "TensorData":
        """List the values of a dense matrix that are not `pad_value`.

        What would take more room so than dense, or is no matrix, stays dense.
        """
        values = to_array(tensor)
        if values.ndim == 2:
            is_listed = values != _check_pad(pad_value)
            num_listed = int(np.count_nonzero(is_listed))
            if len(values) + 1 + 2 * num_listed < values.size:
                return cls.listed(values[is_listed], Csr.of(is_listed))
        return cls(values)

    @classmethod
    def listed(cls, values: NumpyArray, csr: Csr) -> "TensorData":
        """A sparse matrix of one value for each listed place."""
        made = cls(values, shape=[len(csr.cols)])
        made.csr = csr
        return made

    @property
    def sparse_crow_indices(self) -> list[int] | None:
        return None if self.csr is None else self.csr.crow.tolist()

    @property
    def sparse_col_indices(self) -> list[int] | None:
        return None if self.csr is None else self.csr.cols.tolist()

    @property
    def dtype(self) -> str:
        return "float32" if self.array.dtype.kind == "f" else "int64"

    @property
    def shape(self) -> list[int]:
        return list(self.array.shape) if self.csr is None else self.csr.shape

    @property
    def data(self) -> list[Any]:
        """The values as one flat list; of a sparse matrix the listed ones."""
        values: list[Any] = self.array.reshape(-1).tolist()
        return values

    def to_numpy(self, pad_value: int = 0) -> NumpyArray:
        """The array itself, not a copy; a sparse matrix made dense, with `pad_value` elsewhere."""
        if self.csr is not None:
            return self.csr.spread(self.array, _check_pad(pad_value))
        return self.array

    def to_torch(self, pad_value: int = 0) -> "torch.Tensor":
        """A torch tensor that shares the array's memory; a sparse matrix made dense."""
        import torch

        values = self.to_numpy(pad_value)
        values = values if values.flags.writeable else values.copy()
        return torch.from_numpy(values)  # pyright: ignore[reportUnknownMemberType]

    def tolist(self, pad_value: int = 0) -> list[Any]:
        """The values as a list, nested as the shape says."""
        values: list[Any] = self.to_numpy(pad_value).tolist()
        return values

    def __len__(self) -> int:
        return len(self.array) if self.csr is None else self.shape[0]

    def __repr__(self) -> str:
        sparse = "" if self.csr is None else f", {len(self.array)} listed"
        return f"TensorData(shape={self.shape}, dtype={self.dtype!r}{sparse})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TensorData):
            return NotImplemented
        return (
            self.dtype == other.dtype
            and self.csr == other.csr
            and np.array_equal(self.array, other.array)
        )

    __hash__ = None  # type: ignore[assignment]


def _csr(crow: Any, cols: Any, shape: Sequence[int] | None) -> Csr:
    if crow is None or cols is None:
        raise BadRequest("sparse_crow_indices and sparse_col_indices go together")
    if shape is None or len(shape) != 2:
        raise BadRequest(f"a sparse matrix needs the shape [N, K], not {shape}")
    rows, columns = (to_array(indices, "int64").astype(np.int64) for indices in (crow, cols))
    if len(rows) != shape[0] + 1:
        raise BadRequest(f"{len(rows)} row pointers do not make {shape[0]} rows")
    return Csr(rows, columns, int(shape[1]))


def _check_pad(pad_value: Any) -> int:
    if isinstance(pad_value, bool) or not hasattr(pad_value, "__index__"):
        raise BadRequest(f"pad_value is {pad_value!r}, not an integer")
    return int(pad_value)


def is_kept(data: Any) -> TypeGuard[NumpyArray]:
    """Whether data is an array of int32, int64 or float32, which is used as it is."""
    # By identity, which is quick; another object for the same dtype takes the longer way.
    return type(data) is np.ndarray and (
        data.dtype is _INT64 or data.dtype is _FLOAT32 or data.dtype is _INT32
    )


def is_torch(data: object) -> bool:
    """Whether data comes from torch, without importing it."""
    return type(data).__module__.partition(".")[0] == "torch"


def to_array(data: Any, dtype: str | None = None) -> NumpyArray:
    """Numbers of any origin as int32, int64 or float32.

    Args:
        data: list, numpy array, torch tensor, or what numpy makes an array of.
        dtype: "int64", "float32", or None for the one that fits.

    Raises:
        BadRequest: not numbers, or integers beyond 64 bits, or fractions where integers belong.
    """
    if dtype is not None and _is_list(data):
        return from_list(data, dtype)
    if is_torch(data):
        data = _from_torch(data)
    values = data if _is_array(data) else _from_sequence(data, dtype)
    kind = values.dtype.kind
    if kind not in "biuf":
        raise BadRequest(f"values of type {values.dtype} are not numbers")
    if dtype == "float32" or (dtype is None and kind == "f"):
        with np.errstate(over="ignore"):
            return np.asarray(values, np.float32)
    if kind == "f":
        with np.errstate(invalid="ignore"):
            whole = values.astype(np.int64)
        if not np.array_equal(whole, values):
            raise BadRequest("fractions where integers belong")
        return whole
    if values.dtype == np.int32 or values.dtype == np.int64:
        return values
    if kind == "u" and values.size and int(values.max()) >= 2**63:
        raise BadRequest(f"integer {int(values.max())} is beyond 64 bits")
    return values.astype(np.int64)


def _is_array(data: object) -> TypeGuard[NumpyArray]:
    return isinstance(data, np.ndarray)


def _is_list(data: object) -> TypeGuard[list[Any]]:
    return isinstance(data, list)


def _from_torch(tensor: Any) -> NumpyArray:
    if str(tensor.layout) != "torch.strided":
        raise BadRequest(
            f"a tensor of layout {tensor.layout}; give it dense, or by TensorData.from_torch_sparse"
        )
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point():
        tensor = tensor.float()
    values: NumpyArray = tensor.numpy()
    return values


def from_list(values: list[Any], dtype: str) -> NumpyArray:
    """A list of Python numbers as int32 (int64 where they need it) or float32; as `to_array`."""
    # `array` reads 76 M/s and refuses fractions among integers; numpy is as fast and truncates.
    try:
        first = values[0] if values else None
        if isinstance(first, list | tuple):
            return to_array(np.asarray(values), dtype)
        if dtype == "float32":
            # Weights of 1: 3500 M/s.
            is_float = isinstance(first, float)
            if is_float and values[-1] == first and values.count(first) == len(values):
                return np.full(len(values), first, np.float32)
            return np.frombuffer(array("f", values), np.float32)
        try:
            return np.frombuffer(array("i", values), np.int32)
        except OverflowError:
            return np.frombuffer(array("q", values), np.int64)
    except (ValueError, TypeError, OverflowError) as error:
        raise BadRequest(f"not an array of numbers: {error}") from None


def _from_sequence(data: Any, dtype: str | None) -> NumpyArray:
    try:
        return np.asarray(data, np.float32 if dtype == "float32" or not len(data) else None)
    except (ValueError, TypeError, OverflowError) as error:
        raise BadRequest(f"not an array of numbers: {error}") from None
