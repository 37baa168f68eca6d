"""The adapters of one batch: a segment plan bound to weights and to planes for gradients.

E entries of a stack, D input features, O output features, R padded rank, G sites of a group.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...kernels.lora import Rows
from ...kernels.plan import Block, SegmentPlan, Stack, build_plan
from ...kernels.products import Batched, Products, Separate
from ...kernels.stack import StackLayout
from ...kernels.workspace import Workspace
from .store import AdapterStore, Run, WeightsVersion
from .targets import Targets

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
    plane_parts: list[Tensor]  # the same part by part, padded rows included
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
        is_exact = is_deterministic and store.device.type == "cpu"
        self.products: Products = (Separate if is_exact else Batched)(self.workspace)
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
            device, products = self.store.device, self.products
            self._rows[num_rows] = [
                Rows(block, num_rows, device, products) for block in self.plan.blocks
            ]
        return self._rows[num_rows]

    def covers(self, stack: int, site: int) -> bool:
        """Whether the adapters of a stack have rows for a site."""
        return (site, False) in self.stacks[stack].weights

    def weights(self, block: Block, sites: tuple[int, ...]) -> tuple[Tensor, list[Tensor], Tensor]:
        """A of a whole group [E, G * R, D], Bt of its sites [E, R, O], and the scales [E]."""
        stack = self.stacks[block.stack]
        entries = slice(block.first, block.last)
        a_ERD, *bts_ERO = (
            stack.weights[key][entries]
            for key in [(sites[0], True), *((site, False) for site in sites)]
        )
        return a_ERD, bts_ERO, stack.scales_E[entries]

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
        for stack in self.stacks:
            if stack.plane_granules is None:
                continue
            for key, plane in stack.planes.items():
                if key not in self._written:
                    plane.zero_()
            gradients = self._gradients(stack)
            owned = [
                (self._unit_order[unit], run, pieces)
                for unit, pieces in zip(stack.stack.segments, gradients, strict=True)
                if (run := self._runs[unit]) is not None
            ]
            owned.sort(key=lambda item: item[0])
            self.store.add_to_stages(
                [run for _, run, _ in owned], [pieces for _, _, pieces in owned], self.portion
            )

    def _gradients(self, stack: _StackTensors) -> list[list[Tensor]]:
        """Each entry's gradient as flat pieces in the order of its block."""
        parts, granule = stack.layout.parts, self.store.layout.granule
        if len(parts) == 2 and len(parts[0].sites) == 1:  # one site, large: already in order
            return [
                [plane[entry, :rank].view(-1) for plane in stack.plane_parts]
                for entry, rank in enumerate(stack.ranks)
            ]
        assert stack.plane_granules is not None
        index = torch.from_numpy(stack.layout.scatter_index(tuple(stack.ranks)))
        flat = self.workspace.take("flush", (len(index), granule), torch.float32)
        torch.index_select(stack.plane_granules, 0, index.to(self.store.device), out=flat)
        sizes = [stack.layout.block_size(rank) * granule for rank in stack.ranks]
        return [[piece] for piece in torch.split(flat.view(-1), sizes)]

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
        bound = _StackTensors(stack, layout, ranks, scales, {}, {}, [])
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
                bound.plane_parts.append(view)
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


def _part_view(granules: Tensor, start: int, size: int, entries: int, num_rows: int) -> Tensor:
    """One part of a stack, [entries, rows, elements with padding]."""
    part = granules[start * entries : (start + size) * entries]
    return part.view(entries, num_rows, -1)
