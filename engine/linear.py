"""Frozen linear layers as objects that hide their storage, and the seam where adapters join.

Autograd never sees a weight: a group of linears that read the same input is one autograd function.
T tokens, D input features, O output features.
"""

from typing import Any, Protocol

import torch
from torch import Tensor


class BaseLinear(Protocol):
    """A frozen linear layer, whatever its storage: plain, quantised, or one shard of it."""

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features) of this shard."""

    @property
    def shard(self) -> tuple[int, int]:
        """(index, count) of the tensor-parallel split; (0, 1) when whole."""

    def forward(self, x_TD: Tensor, out: Tensor | None = None, accumulate: bool = False) -> Tensor:
        """Return x W^T + bias, written to `out` or added to it when `accumulate`."""

    def backward_input(
        self, dy_TO: Tensor, out: Tensor | None = None, accumulate: bool = False
    ) -> Tensor:
        """Return dy W, written to `out` or added to it when `accumulate`."""


class DenseLinear:
    """A linear layer with a plain weight.

    With `row_tile` > 0 rows are computed in tiles of that many rows, so that the bits of a row
    depend neither on the number nor on the values of the other rows; the number of rows must then
    be a multiple of 16.
    """

    def __init__(self, weight_OD: Tensor, bias_O: Tensor | None = None, row_tile: int = 0) -> None:
        if row_tile < 0 or row_tile % 16:
            raise ValueError(f"row_tile is {row_tile}, not a multiple of 16")
        self.weight_OD = weight_OD
        self.bias_O = bias_O
        self.row_tile = row_tile

    @property
    def shape(self) -> tuple[int, int]:
        return self.weight_OD.shape[0], self.weight_OD.shape[1]

    @property
    def shard(self) -> tuple[int, int]:
        return 0, 1

    def forward(self, x_TD: Tensor, out: Tensor | None = None, accumulate: bool = False) -> Tensor:
        y_TO = self._matmul(x_TD, self.weight_OD.t(), out, accumulate)
        return y_TO if self.bias_O is None else y_TO.add_(self.bias_O)

    def backward_input(
        self, dy_TO: Tensor, out: Tensor | None = None, accumulate: bool = False
    ) -> Tensor:
        return self._matmul(dy_TO, self.weight_OD, out, accumulate)

    def _matmul(self, left: Tensor, right: Tensor, out: Tensor | None, accumulate: bool) -> Tensor:
        if out is None:
            if accumulate:
                raise ValueError("accumulate needs an out tensor")
            out = left.new_empty(left.shape[0], right.shape[1])
        step = self.row_tile or max(left.shape[0], 1)
        if self.row_tile and left.shape[0] % 16:
            raise ValueError(f"{left.shape[0]} rows are not a multiple of 16")
        for start in range(0, left.shape[0], step):
            rows = out[start : start + step]
            torch.addmm(rows, left[start : start + step], right, beta=int(accumulate), out=rows)
        return out


class Linears(Protocol):
    """How the linears of a forward pass are computed: frozen alone, or with adapters."""

    def group(
        self, x_TD: Tensor, bases: tuple[BaseLinear, ...], sites: tuple[int, ...]
    ) -> tuple[Tensor, ...]:
        """Apply the linears that read `x_TD`, (q, k, v), (o,), (gate, up) or (down,).

        Differentiable in `x_TD` and in the adapters, never in a base weight.

        Args:
            x_TD: input, [T, D].
            bases: one frozen linear per output.
            sites: index of each in `ModelConfig.sites()`.

        Returns:
            One output [T, O] per base; they may be views of one tensor.
        """


class FrozenLinears:
    """The base model alone: outputs, and the gradient of the input where one is asked for."""

    def group(
        self, x_TD: Tensor, bases: tuple[BaseLinear, ...], sites: tuple[int, ...]
    ) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = _FrozenGroup.apply(x_TD, bases)  # type: ignore[no-untyped-call]
        return outputs


class _FrozenGroup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, bases: tuple[BaseLinear, ...]) -> tuple[Tensor, ...]:
        ctx.bases = bases
        ctx.set_materialize_grads(False)
        return tuple(base.forward(x_TD) for base in bases)

    @staticmethod
    def backward(ctx: Any, *dys_TO: Tensor | None) -> tuple[Tensor | None, None]:
        dx_TD: Tensor | None = None
        for base, dy_TO in zip(ctx.bases, dys_TO, strict=True):
            if dy_TO is not None:
                dx_TD = base.backward_input(dy_TO, dx_TD, accumulate=dx_TD is not None)
        return dx_TD, None
