"""Linears with adapters: what the model calls instead of `FrozenLinears`.

One autograd function per group of sites, over the batched matmuls of `kernels.lora`. Gradients go
to planes; nothing of a run changes before `flush`.
T rows of the batch, E entries of a stack, L rows of an entry, D input features, O output features,
R padded rank.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...kernels.lora import Rows, shrink, shrink_gradient, weight_gradient
from ...kernels.plan import Block
from ...kernels.workspace import Workspace
from ..model.linear import BaseLinear, Linears
from .lora_batch import Counts, LoraBatch
from .store import AdapterStore, Run, WeightsVersion
from .targets import LAYERS, Targets


class LoraLinears(Linears):
    """Base linears plus the adapter of each unit; implements `linear.Linears`.

    Gradients of adapters wait in planes until `flush` adds them to the runs' stages, so whatever
    fails in forward or backward leaves every run untouched. Arguments as of `LoraBatch`; the rows
    of a batch beyond the units' are bare base model.
    """

    def __init__(
        self,
        store: AdapterStore,
        versions: Sequence[WeightsVersion | None],
        runs: Sequence[Run | None],
        row_counts: Counts,
        *,
        unit_order: Counts | None = None,
        is_deterministic: bool = False,
        workspace: Workspace | None = None,
    ) -> None:
        self.store = store
        self.versions = versions
        self.runs = runs
        self.row_counts = row_counts
        self.unit_order = unit_order
        self.is_deterministic = is_deterministic
        self.workspace = workspace or Workspace(store.device)
        self._batches: dict[Targets, LoraBatch] = {}
        self._anchor: Tensor | None = None
        if any(run is not None for run in runs):
            self._anchor = torch.empty(0, device=store.device, requires_grad=True)

    def group(
        self, x_TD: Tensor, bases: tuple[BaseLinear, ...], sites: tuple[int, ...]
    ) -> tuple[Tensor, ...]:
        """Apply the linears that read `x_TD`, each row with its unit's adapter."""
        portion = Targets.UNEMBED if self.store.sites[sites[0]].family == "unembed" else LAYERS
        if portion not in self._batches:
            self._batches[portion] = LoraBatch(
                self.store,
                portion,
                self.versions,
                self.runs,
                self.row_counts,
                unit_order=self.unit_order,
                is_deterministic=self.is_deterministic,
                workspace=self.workspace,
            )
        outputs: tuple[Tensor, ...] = _LoraGroup.apply(  # type: ignore[no-untyped-call]
            x_TD, self._anchor, self._batches[portion], bases, sites
        )
        return outputs

    def add_batch(self, batch: LoraBatch) -> None:
        """Let `flush` take care of a batch with rows of its own, as the head's are."""
        self._batches[batch.portion] = batch

    def flush(self) -> None:
        """Add all gradients to the stages. Call once, after backward has succeeded."""
        for batch in self._batches.values():
            batch.flush()


class _LoraGroup(torch.autograd.Function):
    """The linears of one group. The anchor asks for a gradient where the input does not."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        anchor: Tensor | None,
        batch: LoraBatch,
        bases: tuple[BaseLinear, ...],
        sites: tuple[int, ...],
    ) -> tuple[Tensor, ...]:
        all_rows = batch.rows(x_TD.shape[0])
        covered = [batch.covers(block.stack, sites[0]) for block in batch.plan.blocks]
        needs_spare = not all(
            rows.is_view for rows, has in zip(all_rows, covered, strict=True) if has
        )
        ys, spares = [], []
        for base in bases:
            spare = x_TD.new_empty(len(x_TD) + 1, base.shape[0]) if needs_spare else None
            y_TO = base.forward(x_TD, None if spare is None else spare[:-1])
            ys.append(y_TO)
            spares.append(y_TO if spare is None else spare)
        projections = []
        for block, rows, has in zip(batch.plan.blocks, all_rows, covered, strict=True):
            if not has:
                continue
            a_ERD, bts_ERO, scale_E = batch.weights(block, sites)
            x_ELD = rows.gather(x_TD, "x")
            s_ELR = shrink(x_ELD, a_ERD, scale_E, batch.products)
            for index, bt_ERO in enumerate(bts_ERO):
                left = _site(s_ELR, index, len(sites))
                rows.add_product(spares[index], left, bt_ERO)
            projections.append(s_ELR)
        ctx.batch, ctx.bases, ctx.sites, ctx.covered = batch, bases, sites, covered
        ctx.needs_spare = needs_spare
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x_TD, *projections)
        return tuple(ys)

    @staticmethod
    def backward(ctx: Any, *dys_TO: Tensor | None) -> tuple[Tensor | None, ...]:
        x_TD, *projections = ctx.saved_tensors
        batch, sites = ctx.batch, ctx.sites
        dys = [dy if dy is None or dy.stride(1) == 1 else dy.contiguous() for dy in dys_TO]
        if all(dy is None for dy in dys):
            return None, None, None, None, None
        all_rows = batch.rows(x_TD.shape[0])
        dx_TD = spare = None
        if ctx.needs_input_grad[0]:
            if ctx.needs_spare:
                spare = x_TD.new_empty(len(x_TD) + 1, x_TD.shape[1])
                dx_TD = spare[:-1]
            is_started = False
            for base, dy in zip(ctx.bases, dys, strict=True):
                if dy is not None:
                    dx_TD = base.backward_input(dy, dx_TD, accumulate=is_started)
                    is_started = True
            spare = dx_TD if spare is None else spare
        ready = iter(projections)
        for block, rows, has in zip(batch.plan.blocks, all_rows, ctx.covered, strict=True):
            if has:
                _block_backward(batch, block, rows, sites, x_TD, dys, next(ready), spare)
        batch.mark_written(sites)
        return dx_TD, None, None, None, None


def _block_backward(
    batch: LoraBatch,
    block: Block,
    rows: Rows,
    sites: tuple[int, ...],
    x_TD: Tensor,
    dys_TO: list[Tensor | None],
    s_ELR: Tensor,
    dx_TD: Tensor | None,
) -> None:
    """Write the planes of one block and add the adapters' part to dx."""
    a_ERD, bts_ERO, scale_E = batch.weights(block, sites)
    dys_ELO = [
        None if dy is None else rows.gather(dy, f"dy{index}") for index, dy in enumerate(dys_TO)
    ]
    ds_ELR = shrink_gradient(dys_ELO, bts_ERO, scale_E, batch.products)
    if batch.stacks[block.stack].planes:
        da_ERD, dbts_ERO = batch.planes(block, sites)
        for index, (dy, dbt_ERO) in enumerate(zip(dys_ELO, dbts_ERO, strict=True)):
            if dy is None:
                dbt_ERO.zero_()
            else:
                weight_gradient(dbt_ERO, _site(s_ELR, index, len(sites)), dy, batch.products)
        x_ELD = rows.gather(x_TD, "x")
        weight_gradient(da_ERD, ds_ELR, x_ELD, batch.products)
    if dx_TD is not None:
        rows.add_product(dx_TD, ds_ELR, a_ERD)


def _site(s_ELR: Tensor, index: int, num_sites: int) -> Tensor:
    """The columns of one site of a group."""
    rank = s_ELR.shape[2] // num_sites
    return s_ELR[:, :, index * rank : (index + 1) * rank]
