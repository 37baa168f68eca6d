"""Measuring what a modelling code does: probes, and linears that watch.

T rows, D input features, O output features.
"""

from collections import Counter
from typing import Any

import torch
from torch import Tensor

from ..model.linear import BaseLinear, Linears

LENGTHS = (11, 14)  # tokens of the two probe sequences


def probe_tokens(config: Any, vocab_size: int, device: torch.device) -> tuple[Tensor, ...]:
    """Two seeded sequences without the special tokens that config names."""
    special: set[Any] = set()
    for key, value in config.to_dict().items():
        if key.endswith(("_token_id", "_token_index")):
            special.update(value if isinstance(value, list) else [value])
    usual = [token for token in range(min(vocab_size, 4096)) if token not in special]
    random = torch.Generator().manual_seed(0)
    return tuple(
        torch.tensor(usual)[torch.randint(len(usual), (length,), generator=random)].to(device)
        for length in LENGTHS
    )


def reached_rows(watch: "WatchingLinears", hidden_TD: Tensor, first_rows: int) -> dict[int, Tensor]:
    """The rows [T] of each site that the first rows of the output depend on."""
    random = torch.Generator().manual_seed(1)
    slopes = torch.randn(first_rows, hidden_TD.shape[1], generator=random).to(hidden_TD)
    watch.reached_T.clear()
    torch.autograd.backward(hidden_TD[:first_rows], slopes, retain_graph=True)
    return dict(watch.reached_T)


class WatchingLinears(Linears):
    """Frozen linears that note which rows of which site the output depends on.

    Args:
        poisoned: rows whose outputs are NaN at every site.
    """

    def __init__(self, poisoned: slice | None = None) -> None:
        self.calls: Counter[int] = Counter()
        self.reached_T: dict[int, Tensor] = {}  # by site: rows with a gradient
        self._poisoned = poisoned
        self._anchor: Tensor | None = None

    def group(
        self, x_TD: Tensor, bases: tuple[BaseLinear, ...], sites: tuple[int, ...]
    ) -> tuple[Tensor, ...]:
        """See `Linears.group`."""
        if self._anchor is None:
            self._anchor = x_TD.new_empty(0, requires_grad=True)
        self.calls.update(sites)
        outputs: tuple[Tensor, ...] = _WatchingGroup.apply(  # type: ignore[no-untyped-call]
            x_TD, self._anchor, bases, sites, self
        )
        if self._poisoned is not None:
            rows = torch.zeros(len(x_TD), 1, dtype=torch.bool, device=x_TD.device)
            rows[self._poisoned] = True
            outputs = tuple(torch.where(rows, torch.nan, y_TO) for y_TO in outputs)
        return outputs


class _WatchingGroup(torch.autograd.Function):
    """Keeps its input for backward, as linears with adapters do."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        anchor: Tensor,
        bases: tuple[BaseLinear, ...],
        sites: tuple[int, ...],
        watch: WatchingLinears,
    ) -> tuple[Tensor, ...]:
        ctx.bases, ctx.sites, ctx.watch = bases, sites, watch
        ctx.save_for_backward(x_TD)
        return tuple(base.forward(x_TD) for base in bases)

    @staticmethod
    def backward(ctx: Any, *dys_TO: Tensor) -> tuple[Tensor | None, ...]:
        dx_TD = None
        for base, site, dy_TO in zip(ctx.bases, ctx.sites, dys_TO, strict=True):
            ctx.watch.reached_T[site] = (dy_TO != 0).any(1)
            dx_TD = base.backward_input(dy_TO, dx_TD, accumulate=dx_TD is not None)
        return dx_TD, None, None, None, None
