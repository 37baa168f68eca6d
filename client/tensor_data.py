"""The array of a training example or an output: numpy inside, lists and torch tensors at the edge.

torch is never imported here unless its caller hands a torch tensor over or asks for one.
"""

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from .errors import BadRequest

if TYPE_CHECKING:
    import torch

NumpyArray = NDArray[Any]

DTYPE_NAMES = ("int64", "float32")

_INT32, _INT64, _FLOAT32 = np.dtype(np.int32), np.dtype(np.int64), np.dtype(np.float32)


class TensorData:
    """A flat or shaped array of integers or floats.

    Arrays are kept as they are given, without a copy: change them only after the call that takes
    them has returned. Integers keep their width in memory and are "int64" by name.

    Args:
        data: a list, a numpy array or a torch tensor.
        dtype: "int64" or "float32"; None goes by the data.
        shape: None keeps the shape of the data.

    Raises:
        BadRequest: no array of numbers, another dtype, or a shape that does not fit.
    """

    __slots__ = ("array",)

    array: NumpyArray

    def __init__(
        self,
        data: "Sequence[int] | Sequence[float] | NumpyArray | torch.Tensor",
        dtype: str | None = None,
        shape: Sequence[int] | None = None,
    ) -> None:
        if dtype is None and shape is None and is_kept(data):
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

    @property
    def dtype(self) -> str:
        return "float32" if self.array.dtype.kind == "f" else "int64"

    @property
    def shape(self) -> list[int]:
        return list(self.array.shape)

    @property
    def data(self) -> list[Any]:
        """The values as one flat list."""
        values: list[Any] = self.array.reshape(-1).tolist()
        return values

    def to_numpy(self) -> NumpyArray:
        """The array itself, not a copy."""
        return self.array

    def to_torch(self) -> "torch.Tensor":
        """A torch tensor that shares the array's memory."""
        import torch

        values = self.array if self.array.flags.writeable else self.array.copy()
        return torch.from_numpy(values)  # pyright: ignore[reportUnknownMemberType]

    def tolist(self) -> list[Any]:
        """The values as a list, nested as the shape says."""
        values: list[Any] = self.array.tolist()
        return values

    def __len__(self) -> int:
        return len(self.array)

    def __repr__(self) -> str:
        return f"TensorData(shape={self.shape}, dtype={self.dtype!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TensorData):
            return NotImplemented
        return self.dtype == other.dtype and np.array_equal(self.array, other.array)

    __hash__ = None  # type: ignore[assignment]


def is_kept(data: Any) -> TypeGuard[NumpyArray]:
    """Whether data is an array of int32, int64 or float32, which is used as it is."""
    # By identity, which is quick; another object for the same dtype takes the longer way.
    return type(data) is np.ndarray and (
        data.dtype is _INT64 or data.dtype is _FLOAT32 or data.dtype is _INT32
    )


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
    if type(data).__module__.partition(".")[0] == "torch":
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
