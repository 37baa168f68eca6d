"""Frozen linear layers as objects that hide their storage, and the seam where adapters join.

Autograd never sees a weight: a group of linears that read the same input is one autograd function.
T tokens, D input features, O output features.
"""

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from .pieces import Pieces

# Where the Triton kernels compute: whether base products are ours as well and take the adapters'
# part inside, or cuBLAS adds them to that part. Deterministic mode always multiplies by ours.
ADAPTERS_INSIDE = False


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

    On CUDA `accumulate` is one product that reads `out` while it multiplies, for any stride of its
    rows: nothing is allocated or copied, and it rounds once. A bias is added apart.
    """

    def __init__(self, weight_OD: Tensor, bias_O: Tensor | None = None, row_tile: int = 0) -> None:
        if row_tile < 0 or row_tile % 16:
            raise ValueError(f"row_tile is {row_tile}, not a multiple of 16")
        self.weight_OD = weight_OD
        self.bias_O = bias_O
        self.row_tile = row_tile
        self._uses_onednn = can_use_onednn(weight_OD)

    @property
    def shape(self) -> tuple[int, int]:
        return self.weight_OD.shape[0], self.weight_OD.shape[1]

    @property
    def shard(self) -> tuple[int, int]:
        return 0, 1

    def forward(self, x_TD: Tensor, out: Tensor | None = None, accumulate: bool = False) -> Tensor:
        return self._tiled(x_TD, self.weight_OD, self.bias_O, out, accumulate)

    def backward_input(
        self, dy_TO: Tensor, out: Tensor | None = None, accumulate: bool = False
    ) -> Tensor:
        return self._tiled(dy_TO, self.weight_OD.t(), None, out, accumulate)

    def _tiled(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None, accumulate: bool
    ) -> Tensor:
        num_rows, tile = x.shape[0], self.row_tile
        if tile and num_rows % 16:
            raise ValueError(f"{num_rows} rows are not a multiple of 16")
        if out is None and accumulate:
            raise ValueError("accumulate needs an out tensor")
        if num_rows and out is None and not 0 < tile < num_rows:
            return self._linear(x, weight, bias)
        if out is None:
            out = x.new_empty(num_rows, weight.shape[0])
        step = tile or max(num_rows, 1)
        for start in range(0, num_rows, step):
            rows = slice(start, start + step)
            self._linear_into(out[rows], x[rows], weight, bias, accumulate)
        return out

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self._uses_onednn:
            y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
            return y
        return functional.linear(x, weight, bias)

    def _linear_into(
        self, out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, accumulate: bool
    ) -> None:
        if not self._uses_onednn:
            if bias is not None and not accumulate:  # rounded once, as in `_linear`
                torch.addmm(bias, x, weight.t(), out=out)
                return
            torch.addmm(out, x, weight.t(), beta=int(accumulate), out=out)
            if bias is not None:
                out.add_(bias)
            return
        # The operation allocates its result; in slices of columns that stays in the cache.
        for start in range(0, weight.shape[0], _COLUMNS):
            columns = slice(start, start + _COLUMNS)
            y = self._linear(x, weight[columns], None if bias is None else bias[columns])
            out[:, columns].add_(y) if accumulate else out[:, columns].copy_(y)


_COLUMNS = 2048  # of 1024, 2048, 4096 and 8192 all within 3 % (256 rows, width 512, float32)


def base_linear(
    weight_OD: Tensor, bias_O: Tensor | None = None, row_tile: int = 0, uses_triton: bool = False
) -> BaseLinear:
    """The linear layer that serves a plain weight.

    Args:
        row_tile: above 0 in deterministic mode; see `DenseLinear`.
        uses_triton: the Triton kernels compute what stands around it.
    """
    if uses_triton and (row_tile or ADAPTERS_INSIDE):
        from .gpu_linear import TritonLinear  # imports triton

        return TritonLinear(weight_OD, bias_O)
    return DenseLinear(weight_OD, bias_O, row_tile)


def can_use_onednn(weight: Tensor) -> bool:
    """Whether oneDNN multiplies this weight: float32 on an x86 CPU.

    PyTorch's own float32 path is MKL. One thread of an AMD Zen 5, width 512, 16 to 1024 rows:
    MKL 78 to 92, oneDNN 132 to 210 GFLOP/s. Rows then have the same bits for any number of rows
    above one.
    """
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


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

    def gated(
        self,
        x_TD: Tensor,
        bases: tuple[BaseLinear, ...],
        sites: tuple[int, ...],
        pieces: Pieces,
    ) -> Tensor:
        """Apply (gate, up) as `group` does and return silu(gate) * up, [T, F]."""
        gate_TF, up_TF = self.group(x_TD, bases, sites)
        return pieces.swiglu(gate_TF, up_TF)


class FrozenLinears(Linears):
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
