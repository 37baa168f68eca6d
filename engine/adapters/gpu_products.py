"""The products of a group of linears with its adapters' part, in two forms.

Both stay until a GPU has measured them; `ADAPTERS_INSIDE` says which one runs. They round
differently, so that an engine keeps to one of them in training, prefill and decode.
T rows, D input features, O output features.
"""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from ...kernels.gpu.lora import Adapters, expand, expand_input
from ..model.gpu_linear import TritonLinear
from ..model.linear import ADAPTERS_INSIDE, BaseLinear


class Products(Protocol):
    """How base linears and adapters make up the outputs of a group and the input's gradient."""

    @property
    def takes_planes(self) -> bool:
        """Whether `forward` takes projections that `shrink` has split."""

    def forward(
        self,
        x_TD: Tensor,
        s: Tensor,
        adapters: Adapters,
        bases: Sequence[BaseLinear],
        sites: Sequence[int],
    ) -> tuple[Tensor, ...]:
        """Return y_g = W_g x + bias_g + B_g s_g of every linear, [T, O_g].

        Args:
            s: what `shrink` returned for the group.
        """

    def input_gradient(
        self,
        dys_TO: Sequence[Tensor | None],
        ds: Tensor,
        adapters: Adapters,
        bases: Sequence[BaseLinear],
        sites: Sequence[int],
    ) -> Tensor:
        """Return dx = sum over g of dy_g W_g + A_g^T ds_g, [T, D].

        Args:
            dys_TO: of every linear, None for zeros; not all of them.
            ds: what `shrink_gradient` returned for them.
        """


class DeltaFirst:
    """The adapters' part is written, and the base products are added to it.

    cuBLAS reads what it adds to while it multiplies: 1.07 times the bytes of the frozen linears,
    against 1.10 for base products first (16 adapters of rank 16, width 4096). Takes any base
    linears, and rounds the adapters' part apart.
    """

    takes_planes = True

    def forward(
        self,
        x_TD: Tensor,
        s: Tensor,
        adapters: Adapters,
        bases: Sequence[BaseLinear],
        sites: Sequence[int],
    ) -> tuple[Tensor, ...]:
        ys = tuple(x_TD.new_empty(len(x_TD), base.shape[0]) for base in bases)
        expand(s, adapters, sites, ys, accumulate=False)
        for base, y_TO in zip(bases, ys, strict=True):
            base.forward(x_TD, y_TO, accumulate=True)
        return ys

    def input_gradient(
        self,
        dys_TO: Sequence[Tensor | None],
        ds: Tensor,
        adapters: Adapters,
        bases: Sequence[BaseLinear],
        sites: Sequence[int],
    ) -> Tensor:
        dx_TD = ds.new_empty(adapters.plan.num_rows, bases[0].shape[1])
        expand_input(ds, adapters, sites, dx_TD, accumulate=False)
        for base, dy_TO in zip(bases, dys_TO, strict=True):
            if dy_TO is not None:
                base.backward_input(dy_TO, dx_TD, accumulate=True)
        return dx_TD


class Inside:
    """Our own product adds the rank rows before it rounds: 1.04 times the bytes.

    Takes base linears of `gpu_linear`, and projections that are not split.
    """

    takes_planes = False

    def forward(
        self,
        x_TD: Tensor,
        s: Tensor,
        adapters: Adapters,
        bases: Sequence[BaseLinear],
        sites: Sequence[int],
    ) -> tuple[Tensor, ...]:
        return tuple(
            _own(base).forward_lora(x_TD, s, adapters, sites, index)
            for index, base in enumerate(bases)
        )

    def input_gradient(
        self,
        dys_TO: Sequence[Tensor | None],
        ds: Tensor,
        adapters: Adapters,
        bases: Sequence[BaseLinear],
        sites: Sequence[int],
    ) -> Tensor:
        *others, (last, last_dy_TO) = [
            (_own(base), dy) for base, dy in zip(bases, dys_TO, strict=True) if dy is not None
        ]
        dx_TD: Tensor | None = None
        for base, dy_TO in others:
            dx_TD = base.backward_input(dy_TO, dx_TD, accumulate=dx_TD is not None)
        return last.backward_input_lora(
            last_dy_TO, ds, adapters, sites, dx_TD, accumulate=dx_TD is not None
        )


def choose_products(bases: Sequence[BaseLinear], inside: bool = ADAPTERS_INSIDE) -> Products:
    """The form that runs for these linears; those of hosted models are never our own."""
    is_own = all(isinstance(base, TritonLinear) for base in bases)
    return Inside() if inside and is_own else DeltaFirst()


def _own(base: BaseLinear) -> TritonLinear:
    if not isinstance(base, TritonLinear):
        raise TypeError(f"adapters go inside products of TritonLinear, not {type(base).__name__}")
    return base
