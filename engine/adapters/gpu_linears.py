"""Linears with adapters by the Triton kernels: what the model calls on a CUDA device.

One autograd function per group of sites. Gradients of adapters go straight into the stages of the
runs, which are nobody's state before the command commits.
T rows of the batch, D input features, O output features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...kernels.gpu.lora import (
    Adapters,
    expand_swiglu,
    shrink,
    shrink_gradient,
    weight_gradients,
)
from ...kernels.gpu.swiglu import swiglu_backward
from ...kernels.gpu.tiles import TileBuffers, build_tiles, site_table
from ..model.linear import BaseLinear, Linears
from ..model.pieces import Pieces
from .gpu_products import choose_products
from .lora_batch import Counts
from .open_stages import close_stages, open_stages
from .store import AdapterStore, Run, WeightsVersion
from .targets import LAYERS, Targets

TRAIN_TILE_ROWS = 64
DECODE_TILE_ROWS = 16  # a unit of a decode step has a row or a few
MAX_DECODE_ROWS = 256  # of a batch


@dataclass(slots=True)
class TileMemory:
    """What plans of one place are written to, batch after batch; one batch at a time uses it."""

    table: Tensor  # see `site_table`
    buffers: TileBuffers

    @classmethod
    def of(cls, store: AdapterStore) -> "TileMemory":
        """Memory on the store's device."""
        return cls(site_table(store.layout, store.device), TileBuffers(store.device))


class TritonLinears(Linears):
    """Base linears plus the adapter of each unit; implements `linear.Linears`.

    After a failure in forward or backward the stages of its runs are to be discarded. The rows of a
    batch beyond the units' are bare base model.

    Args:
        store: where the adapters live.
        versions: weights of each unit, None for the bare base model.
        runs: whose open stage gets a unit's gradient; None for none.
        row_counts: rows of each unit; units lie one after the other from row 0.
        memory: for the plan of this batch.
        portion: of the sites that will be asked for: `LAYERS` or `Targets.UNEMBED`.
        unit_order: orders the units of one run in the sum of their gradients; default as they lie.
        is_deterministic: a row's bits must not depend on how many there are.
    """

    def __init__(
        self,
        store: AdapterStore,
        versions: Sequence[WeightsVersion | None],
        runs: Sequence[Run | None],
        row_counts: Counts,
        *,
        memory: TileMemory,
        portion: Targets = LAYERS,
        unit_order: Counts | None = None,
        is_deterministic: bool = False,
    ) -> None:
        self.store = store
        self.versions = versions
        self.runs = runs
        self.row_counts = row_counts
        self.unit_order = unit_order
        self.is_deterministic = is_deterministic
        self.portion = portion
        self._memory = memory
        self._adapters: Adapters | None = None
        self._written: set[int] = set()
        self._anchor: Tensor | None = None
        if any(run is not None for run in runs):
            self._anchor = torch.empty(0, device=store.device, requires_grad=True)

    def group(
        self, x_TD: Tensor, bases: tuple[BaseLinear, ...], sites: tuple[int, ...]
    ) -> tuple[Tensor, ...]:
        """Apply the linears that read `x_TD`, each row with its unit's adapter."""
        outputs: tuple[Tensor, ...] = _TritonGroup.apply(  # type: ignore[no-untyped-call]
            x_TD, self._anchor, self, self.adapters(len(x_TD)), bases, sites
        )
        return outputs

    def gated(
        self,
        x_TD: Tensor,
        bases: tuple[BaseLinear, ...],
        sites: tuple[int, ...],
        pieces: Pieces,
    ) -> Tensor:
        """Apply (gate, up) with their adapters and return silu(gate) * up."""
        adapters = self.adapters(len(x_TD))
        if not adapters.plan.used_buckets:
            return super().gated(x_TD, bases, sites, pieces)
        h_TF: Tensor = _TritonGated.apply(  # type: ignore[no-untyped-call]
            x_TD, self._anchor, self, adapters, bases, sites
        )
        return h_TF

    def adapters(self, num_rows: int) -> Adapters:
        """The plan of a batch of so many rows, on the device; the same in every layer."""
        if self._adapters is None or self._adapters.plan.num_rows != num_rows:
            self._adapters = self._plan(num_rows)
        return self._adapters

    def mark_written(self, sites: tuple[int, ...]) -> None:
        """Say that the stages hold this batch's gradients of these sites."""
        self._written.update(sites)

    def flush(self) -> None:
        """Make the stages whole. Call once, after backward has succeeded.

        Sites that backward did not reach add zeros, and so do runs without rows.
        """
        pairs = zip(self.runs, self.row_counts, strict=True)
        runs = [run for run, num_rows in pairs if num_rows]
        close_stages(self.store, runs, self.portion, self._written)

    def _plan(self, num_rows: int) -> Adapters:
        store = self.store
        gradients, is_fresh = open_stages(store, self.runs, self.portion)
        is_decode = num_rows <= MAX_DECODE_ROWS and not self.is_deterministic
        is_decode &= self._anchor is None
        plan = build_tiles(
            np.asarray(self.row_counts),
            num_rows=num_rows,
            starts=[0 if version is None else version.start for version in self.versions],
            ranks=[0 if version is None else version.rank for version in self.versions],
            masks=[0 if version is None else int(version.targets) for version in self.versions],
            scales=[0.0 if version is None else version.scale for version in self.versions],
            gradients=gradients,
            is_fresh=is_fresh,
            unit_order=self.unit_order,
            tile_rows=DECODE_TILE_ROWS if is_decode else TRAIN_TILE_ROWS,
        )
        self._memory.buffers.write(plan)
        return Adapters(
            weights=store.weights.view(-1),
            table=self._memory.table,
            layout=store.layout,
            plan=plan,
            buffers=self._memory.buffers,
            gradients=store.states.planes.view(-1),
        )


class _TritonGroup(torch.autograd.Function):
    """The linears of one group. The anchor asks for a gradient where the input does not."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        anchor: Tensor | None,
        linears: TritonLinears,
        adapters: Adapters,
        bases: tuple[BaseLinear, ...],
        sites: tuple[int, ...],
    ) -> tuple[Tensor, ...]:
        ctx.linears, ctx.adapters, ctx.bases, ctx.sites = linears, adapters, bases, sites
        ctx.set_materialize_grads(False)
        if not adapters.plan.used_buckets:
            ctx.save_for_backward(x_TD)
            return tuple(base.forward(x_TD) for base in bases)
        products, x_TD = choose_products(bases), x_TD.contiguous()
        s = _shrink(x_TD, adapters, sites, can_split=products.takes_planes)
        ctx.save_for_backward(x_TD, s)
        return products.forward(x_TD, s, adapters, bases, sites)

    @staticmethod
    def backward(ctx: Any, *dys_TO: Tensor | None) -> tuple[Tensor | None, ...]:
        x_TD, *projections = ctx.saved_tensors
        dx_TD = _group_backward(ctx, x_TD, projections, dys_TO)
        return dx_TD, None, None, None, None, None


class _TritonGated(torch.autograd.Function):
    """Gate, up and SwiGLU. The base products are written first; what adds the adapters' part to
    them goes on to SwiGLU, so that gate and up are read once.

    Without adapters the group and SwiGLU after it do as well: use this one only with.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        anchor: Tensor | None,
        linears: TritonLinears,
        adapters: Adapters,
        bases: tuple[BaseLinear, ...],
        sites: tuple[int, ...],
    ) -> Tensor:
        ctx.linears, ctx.adapters, ctx.bases, ctx.sites = linears, adapters, bases, sites
        x_TD = x_TD.contiguous()
        s = _shrink(x_TD, adapters, sites, can_split=True)
        gate_TF, up_TF = (base.forward(x_TD) for base in bases)
        needs_backward = any(ctx.needs_input_grad)
        h_TF = expand_swiglu(s, adapters, sites, gate_TF, up_TF, keep=needs_backward)
        if needs_backward:
            ctx.save_for_backward(x_TD, s, gate_TF, up_TF)
        return h_TF

    @staticmethod
    def backward(ctx: Any, dh_TF: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, s, gate_TF, up_TF = ctx.saved_tensors
        dys_TF = swiglu_backward(dh_TF.contiguous(), gate_TF, up_TF)
        return _group_backward(ctx, x_TD, [s], dys_TF), None, None, None, None, None


def _shrink(x_TD: Tensor, adapters: Adapters, sites: tuple[int, ...], *, can_split: bool) -> Tensor:
    is_decode = adapters.plan.tile_rows == DECODE_TILE_ROWS
    return shrink(x_TD, adapters, sites, is_split=is_decode and can_split)


def _group_backward(
    ctx: Any, x_TD: Tensor, projections: Sequence[Tensor], dys_TO: Sequence[Tensor | None]
) -> Tensor | None:
    """Add the adapters' gradients to the stages; returns the gradient of the input if wanted."""
    adapters, sites = ctx.adapters, ctx.sites
    dys = [None if dy is None else dy.contiguous() for dy in dys_TO]
    if all(dy is None for dy in dys):
        return None
    needs_dx = ctx.needs_input_grad[0]
    if projections:
        ds = shrink_gradient(dys, adapters, sites)
        weight_gradients(x_TD, dys, projections[0], ds, adapters, sites)
        ctx.linears.mark_written(sites)
        products = choose_products(ctx.bases)
        return products.input_gradient(dys, ds, adapters, ctx.bases, sites) if needs_dx else None
    dx_TD: Tensor | None = None
    for base, dy in zip(ctx.bases, dys, strict=True):
        if needs_dx and dy is not None:
            dx_TD = base.backward_input(dy, dx_TD, accumulate=dx_TD is not None)
    return dx_TD
