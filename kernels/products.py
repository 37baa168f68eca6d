"""Batched matrix products, E times [X, Y] @ [Y, Z]: in one call, or each as if it were alone.

By these facts of a CPU the last bits of a product depend on what stands beside it (PyTorch 2.13
with MKL 2024.2, AMD EPYC, 1 to 64 threads). In float32:

- how MKL shares a batch among threads depends on the number of products: 1, 2 and 8 of them differ
  where rows or columns are no multiples of 16;
- its kernels sum in another order where an operand or the result does not start at a multiple of
  16 bytes, which with rows of 97 elements is a matter of their place;
- to add to the result inside of the product differs from adding afterwards, for products of one or
  two rows and for any of more than 192 terms.

In 16 bits oneDNN serves batches that are large enough, and another routine the others.

What does not depend on the number of rows, nor on their place: the bits of a row, where rows come in
sixteens and start at multiples of 16 bytes, as long as one routine serves any number of them.
"""

from typing import Protocol

import torch
from torch import Tensor

from .workspace import Workspace

ALIGNED = 16  # elements; rows that start at their multiples are aligned for every kernel
_COLUMNS = 2048  # of a product that is added, so that it stays in the cache
_SMALL = 256  # terms times columns up to which the routine in 16 bits depends on the rows


class Products(Protocol):
    """How the products of a block are computed."""

    def multiply(self, left_EXY: Tensor, right_EYZ: Tensor) -> Tensor:
        """Return left @ right."""

    def write(self, out_EXZ: Tensor, left_EXY: Tensor, right_EYZ: Tensor) -> None:
        """Write left @ right."""

    def add(self, out_EXZ: Tensor, left_EXY: Tensor, right_EYZ: Tensor) -> None:
        """Add left @ right."""

    def result(self, num_rows: int, width: int, dtype: torch.dtype) -> Tensor:
        """Rows [num_rows, width] of a workspace that, seen as [E, X, Z], can be written to."""

    def operand(self, name: str, num_rows: int, width: int, dtype: torch.dtype) -> Tensor:
        """Rows [num_rows, width] of a workspace that, seen as [E, X, Y], can be multiplied."""

    def as_operand(self, name: str, x_EXY: Tensor) -> Tensor:
        """What lies anywhere as something that can be multiplied: itself, or a copy in `operand`."""


class Batched:
    """One call for all."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def multiply(self, left_EXY: Tensor, right_EYZ: Tensor) -> Tensor:
        """See `Products`."""
        return torch.bmm(left_EXY, right_EYZ)

    def write(self, out_EXZ: Tensor, left_EXY: Tensor, right_EYZ: Tensor) -> None:
        """See `Products`."""
        torch.bmm(left_EXY, right_EYZ, out=out_EXZ)

    def add(self, out_EXZ: Tensor, left_EXY: Tensor, right_EYZ: Tensor) -> None:
        """See `Products`."""
        out_EXZ.baddbmm_(left_EXY, right_EYZ)

    def result(self, num_rows: int, width: int, dtype: torch.dtype) -> Tensor:
        """See `Products`."""
        return self._workspace.take("product", (num_rows, width), dtype)

    def operand(self, name: str, num_rows: int, width: int, dtype: torch.dtype) -> Tensor:
        """See `Products`."""
        return self._workspace.take(name, (num_rows, width), dtype)

    def as_operand(self, name: str, x_EXY: Tensor) -> Tensor:
        """See `Products`."""
        return x_EXY


class Separate:
    """No bit of a product depends on the other ones, nor on the place where `add` adds it.

    Nor does any bit of a row of `multiply` and `add` depend on the other rows, where these come in
    multiples of 16. On a CPU. Every product of an operand, and of what `write` gets, starts at a multiple of
    `ALIGNED` elements.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def multiply(self, left_EXY: Tensor, right_EYZ: Tensor) -> Tensor:
        """See `Products`; the rows do not lie end to end."""
        (count, num_rows, _), width = left_EXY.shape, right_EYZ.shape[2]
        out_EXZ = left_EXY.new_empty(count, num_rows, _pitch(width))[:, :, :width]
        self.write(out_EXZ, left_EXY, right_EYZ)
        return out_EXZ

    def write(self, out_EXZ: Tensor, left_EXY: Tensor, right_EYZ: Tensor) -> None:
        """See `Products`.

        PyTorch takes one product after the other, at 1 us each, where the rows of a float32 result
        do not lie end to end; those of its transpose do not either. A row alone has the same bits
        both ways.
        """
        if out_EXZ.dtype != torch.float32:
            is_small = right_EYZ.shape[1] * right_EYZ.shape[2] <= _SMALL
            for out, left, right in zip(out_EXZ, left_EXY, right_EYZ, strict=True):
                if is_small:
                    out.copy_(left.float() @ right.float())
                else:
                    torch.mm(left, right, out=out)
        elif out_EXZ.is_contiguous() and out_EXZ.shape[1] > 1:
            left_ZY, right_YX = right_EYZ.transpose(1, 2), left_EXY.transpose(1, 2)
            torch.bmm(left_ZY, right_YX, out=out_EXZ.transpose(1, 2))
        else:
            torch.bmm(left_EXY, right_EYZ, out=out_EXZ)

    def add(self, out_EXZ: Tensor, left_EXY: Tensor, right_EYZ: Tensor) -> None:
        """See `Products`; `out_EXZ` may lie anywhere."""
        count, num_rows, width = out_EXZ.shape
        if width > _COLUMNS:
            for start in range(0, width, _COLUMNS):
                columns = slice(start, start + _COLUMNS)
                self.add(out_EXZ[:, :, columns], left_EXY, right_EYZ[:, :, columns])
            return
        product_EXZ = self.result(count * num_rows, width, out_EXZ.dtype).view(out_EXZ.shape)
        self.write(product_EXZ, left_EXY, right_EYZ)
        out_EXZ.add_(product_EXZ)

    def result(self, num_rows: int, width: int, dtype: torch.dtype) -> Tensor:
        """See `Products`; the rows do not lie end to end."""
        return self._workspace.take("product", (num_rows, _pitch(width)), dtype)[:, :width]

    def operand(self, name: str, num_rows: int, width: int, dtype: torch.dtype) -> Tensor:
        """See `Products`."""
        step = -(-width // ALIGNED) * ALIGNED
        return self._workspace.take(name, (num_rows, step), dtype)[:, :width]

    def as_operand(self, name: str, x_EXY: Tensor) -> Tensor:
        """See `Products`."""
        count, num_rows, width = x_EXY.shape
        if width % ALIGNED == 0:
            return x_EXY
        copy = self.operand(name, count * num_rows, width, x_EXY.dtype)
        return copy.view(count, num_rows, width).copy_(x_EXY)


def _pitch(width: int) -> int:
    """Elements from one row to the next, aligned and more than the row has."""
    return (width // ALIGNED + 1) * ALIGNED
