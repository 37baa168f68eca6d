"""Frozen linear layers by our own Triton product, for a device that is not a CPU.

The bits of a row depend neither on the number nor on the values of the other rows, hence serve
training, prefill and decode alike. Adapters may be computed inside.
T tokens, D input features, O output features.
"""

from collections.abc import Sequence

from torch import Tensor

from ...kernels.gpu.gemm import input_gradient, linear
from ...kernels.gpu.gemm_lora import input_gradient_lora, linear_lora
from ...kernels.gpu.lora import Adapters


class TritonLinear:
    """A linear layer with a plain weight; implements `BaseLinear`, for any number of rows."""

    def __init__(self, weight_OD: Tensor, bias_O: Tensor | None = None) -> None:
        self.weight_OD = weight_OD
        self.bias_O = bias_O

    @property
    def shape(self) -> tuple[int, int]:
        return self.weight_OD.shape[0], self.weight_OD.shape[1]

    @property
    def shard(self) -> tuple[int, int]:
        return 0, 1

    def forward(self, x_TD: Tensor, out: Tensor | None = None, accumulate: bool = False) -> Tensor:
        return linear(_rows(x_TD), self.weight_OD, out, bias=self.bias_O, accumulate=accumulate)

    def backward_input(
        self, dy_TO: Tensor, out: Tensor | None = None, accumulate: bool = False
    ) -> Tensor:
        return input_gradient(_rows(dy_TO), self.weight_OD, out, accumulate=accumulate)

    def forward_lora(
        self, x_TD: Tensor, s: Tensor, adapters: Adapters, sites: Sequence[int], index: int
    ) -> Tensor:
        """`forward` and what the adapters add, rounded once; see `linear_lora`."""
        return linear_lora(_rows(x_TD), self.weight_OD, s, adapters, sites, index, bias=self.bias_O)

    def backward_input_lora(
        self,
        dy_TO: Tensor,
        ds: Tensor,
        adapters: Adapters,
        sites: Sequence[int],
        out: Tensor | None = None,
        accumulate: bool = False,
    ) -> Tensor:
        """`backward_input` and what all adapters of the group add; see `input_gradient_lora`."""
        return input_gradient_lora(
            _rows(dy_TO), self.weight_OD, ds, adapters, sites, out, accumulate=accumulate
        )


def _rows(x: Tensor) -> Tensor:
    """The same with the elements of a row side by side."""
    return x if x.stride(1) == 1 else x.contiguous()
