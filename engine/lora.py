"""Linears with adapters: what the model calls instead of `FrozenLinears`.

`LoraBatch` binds a segment plan to the adapters of a batch: it gathers their weights into padded
stacks once, and owns the planes that backward writes gradients to. `LoraLinears` is the seam to
the model, one autograd function per group. Nothing of a run changes before `flush`.
T rows of the batch, E entries of a stack, D input features, O output features, R padded rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..kernels.lora import Rows, shrink, shrink_gradient, weight_gradient
from ..kernels.plan import Block, SegmentPlan, Stack, build_plan
from ..kernels.stack import StackLayout
from ..kernels.workspace import Workspace
from .adapters import LAYERS, AdapterStore, Run, Targets, WeightsVersion
from .linear import BaseLinear

Counts = Sequence[int] | npt.NDArray[np.int32] | npt.NDArray[np.int64]


@dataclass(slots=True)
class _StackTensors:
    """One stack on the device."""

    stack: Stack
    layout: StackLayout
    ranks: list[int]
    scales_E: Tensor
    weights: dict[tuple[int, bool], Tensor]  # (first site of the group or site, is A) -> [E, R, .]
    planes: dict[tuple[int, bool], Tensor]  # the same of the gradients; empty without runs
    plane_granules: Tensor | None = None


class LoraBatch:
    """The adapters of one batch, over the sites of one portion: the layers, or the unembedding.

    Args:
        store: where the adapters live.
        portion: `LAYERS` or `Targets.UNEMBED`.
        versions: weights of each unit, None for the bare base model.
        runs: whose stage gets a unit's gradient; None for none.
        row_counts: rows of each unit; units lie one after the other from row 0.
        unit_order: orders the units of one run in the sum of their gradients; default as they lie.
        is_deterministic: a unit's bits must not depend on its neighbours' presence.
        is_fine: pad units as little as possible, see `build_plan`.
        workspace: buffers; one live batch with runs at a time may use it.
    """

    def __init__(
        self,
        store: AdapterStore,
        portion: Targets,
        versions: Sequence[WeightsVersion | None],
        runs: Sequence[Run | None],
        row_counts: Counts,
        *,
        unit_order: Counts | None = None,
        is_deterministic: bool = False,
        is_fine: bool = False,
        workspace: Workspace | None = None,
    ) -> None:
        self.store = store
        self.portion = portion
        self.workspace = workspace or Workspace(store.device)
        self.plan: SegmentPlan = build_plan(
            np.asarray(row_counts),
            [0 if version is None else version.rank for version in versions],
            [0 if version is None else version.targets & portion for version in versions],
            is_deterministic=is_deterministic,
            is_fine=is_fine,
        )
        self._runs = list(runs)
        self._unit_order = list(range(len(runs))) if unit_order is None else list(unit_order)
        self._rows: dict[int, list[Rows]] = {}
        self._written: set[tuple[int, bool]] = set()
        self.stacks = [self._bind(number, versions) for number in range(len(self.plan.stacks))]

    def rows(self, num_rows: int) -> list[Rows]:
        """How each block's rows lie in a batch of `num_rows` rows, built once."""
        if num_rows < self.plan.num_rows:
            raise ValueError(f"{num_rows} rows, but the units have {self.plan.num_rows}")
        if num_rows not in self._rows:
            device = self.store.device
            self._rows[num_rows] = [Rows(block, num_rows, device) for block in self.plan.blocks]
        return self._rows[num_rows]

    def covers(self, stack: int, site: int) -> bool:
        """Whether the adapters of a stack have rows for a site."""
        return (site, False) in self.stacks[stack].weights

    def weights(self, block: Block, sites: tuple[int, ...]) -> tuple[Tensor, list[Tensor], Tensor]:
        """A of a whole group [E, G * R, D], Bt of its sites [E, R, O], and the scales [E]."""
        stack = self.stacks[block.stack]
        entries = slice(block.first, block.last)
        bts = [stack.weights[site, False][entries] for site in sites]
        return stack.weights[sites[0], True][entries], bts, stack.scales_E[entries]

    def planes(self, block: Block, sites: tuple[int, ...]) -> tuple[Tensor, list[Tensor]]:
        """Gradients of A [E, G * R, D] and of Bt [E, R, O], fp32, to be written."""
        stack = self.stacks[block.stack]
        entries = slice(block.first, block.last)
        return (
            stack.planes[sites[0], True][entries],
            [stack.planes[site, False][entries] for site in sites],
        )

    def flush(self) -> None:
        """Add the planes to the stages of the runs, a run's units in their order.

        A group that backward did not reach adds zeros. Allocates only small index lists; the
        planes are free for another batch afterwards.
        """
        granule = self.store.layout.granule
        for stack in self.stacks:
            if stack.plane_granules is None:
                continue
            for key, plane in stack.planes.items():
                if key not in self._written:
                    plane.zero_()
            index = torch.from_numpy(stack.layout.scatter_index(tuple(stack.ranks)))
            flat = self.workspace.take("flush", (len(index), granule), torch.float32)
            torch.index_select(stack.plane_granules, 0, index.to(self.store.device), out=flat)
            sizes = [stack.layout.block_size(rank) * granule for rank in stack.ranks]
            units = zip(stack.stack.segments, torch.split(flat.view(-1), sizes), strict=True)
            pairs = [(self._runs[unit], unit, gradient) for unit, gradient in units]
            pairs.sort(key=lambda pair: self._unit_order[pair[1]])
            self.store.add_to_stages(
                [run for run, _, _ in pairs if run is not None],
                [gradient for run, _, gradient in pairs if run is not None],
                self.portion,
            )

    def mark_written(self, sites: tuple[int, ...]) -> None:
        """Say that the planes of these sites hold this batch's gradients."""
        self._written.add((sites[0], True))
        self._written.update((site, False) for site in sites)

    def _bind(self, number: int, versions: Sequence[WeightsVersion | None]) -> _StackTensors:
        stack = self.plan.stacks[number]
        members = [version for unit in stack.segments if (version := versions[unit]) is not None]
        layout = StackLayout(self.store.layout, stack.bucket, stack.targets)
        ranks = [member.rank for member in members]
        name = f"{self.portion.name or int(self.portion)}.{number}"
        weights = self._gather(name, layout, members)
        scales = torch.tensor([member.scale for member in members], device=self.store.device)
        bound = _StackTensors(stack, layout, ranks, scales, {}, {})
        num_views = 1 if weights.shape[0] < len(members) * layout.size else len(members)
        for part in layout.parts:
            view = _part_view(weights, part.start, part.size, num_views, part.num_rows)
            view = view.expand(len(members), -1, -1)[:, :, : part.width]
            bound.weights[part.sites[0], part.is_a] = view
        if any(self._runs[unit] is not None for unit in stack.segments):
            shape = (len(members) * layout.size, self.store.layout.granule)
            planes = self.workspace.take(f"planes.{name}", shape, torch.float32)
            for part in layout.parts:
                view = _part_view(planes, part.start, part.size, len(members), part.num_rows)
                if view.shape[2] > part.width:
                    view[:, :, part.width :] = 0
                bound.planes[part.sites[0], part.is_a] = view[:, :, : part.width]
            bound.plane_granules = planes
        return bound

    def _gather(self, name: str, layout: StackLayout, members: Sequence[WeightsVersion]) -> Tensor:
        """The padded stack [granules, elements]; a single entry when all have one version."""
        if all(member is members[0] for member in members):
            members = members[:1]
        granule = self.store.layout.granule
        shape = (len(members) * layout.size, granule)
        weights = self.workspace.take(f"weights.{name}", shape, self.store.dtype)
        content = (layout.targets, layout.bucket, *(member.id for member in members))
        if self.workspace.contents.get(f"weights.{name}") != content:
            offsets = [
                self.store.layout.portion_range(member.rank, member.targets, self.portion)[0]
                for member in members
            ]
            index = layout.gather_index(
                [member.rank for member in members],
                [member.start + offset for member, offset in zip(members, offsets, strict=True)],
            )
            device_index = torch.from_numpy(index).to(self.store.device)
            torch.index_select(self.store.weights, 0, device_index, out=weights)
            self.workspace.contents[f"weights.{name}"] = content
        return weights


class LoraLinears:
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
        portion = LAYERS if self.store.sites[sites[0]].layer >= 0 else Targets.UNEMBED
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
            s_ELR = shrink(rows.gather(x_TD, batch.workspace, "x"), a_ERD, scale_E)
            for index, bt_ERO in enumerate(bts_ERO):
                left = _site(s_ELR, index, len(sites))
                rows.add_product(spares[index], left, bt_ERO, batch.workspace)
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
        None if dy is None else rows.gather(dy, batch.workspace, f"dy{index}")
        for index, dy in enumerate(dys_TO)
    ]
    ds_ELR = shrink_gradient(dys_ELO, bts_ERO, scale_E)
    if batch.stacks[block.stack].planes:
        da_ERD, dbts_ERO = batch.planes(block, sites)
        for index, (dy, dbt_ERO) in enumerate(zip(dys_ELO, dbts_ERO, strict=True)):
            if dy is None:
                dbt_ERO.zero_()
            else:
                weight_gradient(dbt_ERO, _site(s_ELR, index, len(sites)), dy)
        weight_gradient(da_ERD, ds_ELR, rows.gather(x_TD, batch.workspace, "x"))
    if dx_TD is not None:
        rows.add_product(dx_TD, ds_ELR, a_ERD, batch.workspace)


def _site(s_ELR: Tensor, index: int, num_sites: int) -> Tensor:
    """The columns of one site of a group."""
    rank = s_ELR.shape[2] // num_sites
    return s_ELR[:, :, index * rank : (index + 1) * rank]


def _part_view(granules: Tensor, start: int, size: int, entries: int, num_rows: int) -> Tensor:
    """One part of a stack, [entries, rows, elements with padding]."""
    part = granules[start * entries : (start + size) * entries]
    return part.view(entries, num_rows, -1)
