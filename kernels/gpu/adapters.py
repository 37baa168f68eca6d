"""The adapters of one batch on the device, as the multi-LoRA kernels take them.

T rows, G sites of a group.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from torch import Tensor

from ..layout import Layout, padded
from .tiles import TileBuffers, TilePlan

A, BT = 0, 1  # halves of a site in the table
MAX_SITES = 3  # of a group: as many pointers the kernels take
# Programs that fill a device: two on each of 132 processors. Who computes what follows from it;
# what is summed, and in which order, does not.
FULL_GRID = 264


@dataclass(frozen=True, eq=False)
class Adapters:
    """Everything about a batch's adapters; serves every layer, forward and backward.

    `buffers` holds `plan`, and may take the next one once all launches of this batch were issued.
    """

    weights: Tensor  # flat arena of rank rows, in the activations' dtype
    table: Tensor  # see `tiles.site_table`
    layout: Layout
    plan: TilePlan
    buffers: TileBuffers
    gradients: Tensor | None = None  # flat float32 arena with the blocks of the plan's entries

    @property
    def granule_units(self) -> int:
        """The layout's granule in units of 16 elements."""
        return self.layout.granule // 16

    @property
    def s_units(self) -> int:
        """The part of a site in a projection, in units of 16 elements."""
        return self.plan.s_elements // 16

    def site_arguments(self, site: int, half: int) -> dict[str, Any]:
        """What a kernel needs to find the rows of sites from `site` on."""
        return {
            "table_ptr": self.table,
            "site": site,
            "half": half,
            "num_sites": len(self.layout.shapes),
        }

    def tile_arguments(self) -> dict[str, Any]:
        """The records of a kernel over tiles."""
        buffers = self.buffers
        return {
            "header_ptr": buffers.header,
            "tiles_ptr": buffers.tiles,
            "segments_ptr": buffers.segments,
            "scales_ptr": buffers.scales,
        }

    def entry_arguments(self) -> dict[str, Any]:
        """The records of a kernel over entries."""
        buffers = self.buffers
        return {
            "header_ptr": buffers.header,
            "segments_ptr": buffers.segments,
            "entries_ptr": buffers.entries,
            "chunks_ptr": buffers.chunks,
        }

    def check_sites(
        self, sites: Sequence[int], tensors: Sequence[Tensor | None], half: int
    ) -> None:
        """Refuse tensors that are not [T, width] of their sites.

        Raises:
            ValueError: names what differs.
        """
        first = sites[0]
        if list(sites) != list(range(first, first + len(sites))) or len(sites) > MAX_SITES:
            raise ValueError(f"sites {tuple(sites)} are not up to {MAX_SITES} neighbours")
        for site, tensor in zip(sites, tensors, strict=True):
            if tensor is None:
                continue
            shape = (self.plan.num_rows, self.layout.shapes[site][half])
            if tensor.shape != shape or not tensor.is_contiguous():
                found = f"{tuple(tensor.shape)} with strides {tensor.stride()}"
                raise ValueError(f"site {site} takes contiguous rows {shape}, not {found}")
            if tensor.dtype != self.weights.dtype:
                raise ValueError(f"rows of {tensor.dtype}, adapters of {self.weights.dtype}")


def width_arguments(width: int) -> dict[str, int]:
    """A width and the pitch of its rank rows, in units, so that one form serves every width."""
    unit = width_unit(width)
    return {"width_units": width // unit, "pitch_units": padded(width) // 16}


def width_unit(width: int) -> int:
    """16 elements where the width allows it: loads of rows are wide only then."""
    return 16 if width % 16 == 0 else 1


def alike(tensors: Sequence[Tensor | None]) -> Iterator[list[int]]:
    """Places of neighbours of one width, or of neighbours that are None: one launch serves them."""
    widths = [None if tensor is None else tensor.shape[1] for tensor in tensors]
    for _, places in groupby(range(len(widths)), key=lambda place: widths[place]):
        yield list(places)


def three(name: str, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    """The pointer arguments name0_ptr to name2_ptr; those without a tensor are never read."""
    return {
        f"{name}{index}_ptr": tensors[min(index, len(tensors) - 1)] for index in range(MAX_SITES)
    }
