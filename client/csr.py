"""Which places of a matrix are listed, as compressed sparse rows; the other places are padding.

N rows, K columns, M listed places, in the order of rows, then columns.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import BadRequest

NumpyArray = NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Csr:
    """The listed places of a matrix [N, K].

    Raises:
        BadRequest: row pointers that do not begin at 0, fall, or end elsewhere than at the last
            column index; columns outside 0..K - 1, or not rising within a row.
    """

    crow: NDArray[np.int64]  # [N + 1], where each row begins
    cols: NDArray[np.int64]  # [M]
    width: int  # K

    def __post_init__(self) -> None:
        crow, cols = self.crow, self.cols
        if not 0 <= self.width < 2**31:
            raise BadRequest(f"a sparse matrix has {self.width} columns")
        if crow.ndim != 1 or cols.ndim != 1 or not len(crow) or crow[0] != 0:
            raise BadRequest("sparse_crow_indices is no list that begins with 0")
        if crow[-1] != len(cols) or (np.diff(crow) < 0).any():
            raise BadRequest(
                f"sparse_crow_indices falls, or ends at {crow[-1]} for {len(cols)} column indices"
            )
        if len(cols) and not (cols.min() >= 0 and cols.max() < self.width):
            raise BadRequest(f"sparse_col_indices holds a column outside 0 .. {self.width - 1}")
        places = self.places
        if (places[1:] <= places[:-1]).any():
            raise BadRequest("sparse_col_indices does not rise within a row")

    @classmethod
    def of(cls, is_listed: NDArray[np.bool_]) -> "Csr":
        """From a matrix that is true where a place is listed."""
        crow = np.concatenate(([0], np.cumsum(is_listed.sum(1, dtype=np.int64))))
        return cls(crow, np.nonzero(is_listed)[1].astype(np.int64), is_listed.shape[1])

    @property
    def shape(self) -> list[int]:
        return [len(self.crow) - 1, self.width]

    @property
    def places(self) -> NDArray[np.int64]:
        """Index of each listed place in the matrix laid out row by row, [M]."""
        rows = np.repeat(np.arange(len(self.crow) - 1), np.diff(self.crow))
        return rows * self.width + self.cols

    def spread(self, values: NumpyArray, pad_value: int = 0) -> NumpyArray:
        """The matrix with these values at its listed places."""
        matrix = np.full(self.shape, pad_value, values.dtype)
        matrix.reshape(-1)[self.places] = values
        return matrix

    def collect(self, matrix: NumpyArray) -> NumpyArray:
        """What a matrix holds at the listed places, [M]."""
        return matrix.reshape(-1)[self.places]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Csr):
            return NotImplemented
        return (
            self.width == other.width
            and np.array_equal(self.crow, other.crow)
            and np.array_equal(self.cols, other.cols)
        )

    __hash__ = None  # type: ignore[assignment]
