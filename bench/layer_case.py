"""The linears of a decoder layer with many adapters, as kernels see them: data, plan and forms.

A *form* computes forward and backward of all linears: outputs, input gradients and the adapters'
gradients, from random inputs of every group and random gradients of every output.
T rows, D input features, O output features.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from weft.kernels.gpu import gemm, gemm_lora, lora
from weft.kernels.gpu.lora import Adapters
from weft.kernels.gpu.tiles import TileBuffers, build_tiles, site_table
from weft.kernels.layout import Layout

UNIT_TOKENS = 2048
ALL = 3  # target mask: attention and MLP
FAMILIES = (1, 1, 2, 2)  # of the groups qkv, o, gate_up, down
MIXED_RANKS = (16, 4, 64, 8, 128, 1, 32)

Groups = Sequence[tuple[int, tuple[int, ...]]]  # (in_features, out_features of its sites)


@dataclass(frozen=True, slots=True)
class Mix:
    """Who is in a batch."""

    num_tokens: int
    num_adapters: int
    ranks: str  # a number, or "mixed"
    lengths: str  # "equal", "zipf", "one" (90 % of the rows) or "bare" (every fifth row)

    def adapter_ranks(self) -> list[int]:
        """Rank of every adapter."""
        given = MIXED_RANKS if self.ranks == "mixed" else (int(self.ranks),)
        return [given[index % len(given)] for index in range(self.num_adapters)]

    def row_counts(self) -> list[int]:
        """Rows of every adapter; what is missing to `num_tokens` has none."""
        total = self.num_tokens * 4 // 5 if self.lengths == "bare" else self.num_tokens
        shares = np.ones(self.num_adapters)
        if self.lengths == "zipf":
            shares = 1 / np.arange(1, self.num_adapters + 1) ** 1.5
        if self.lengths == "one" and self.num_adapters > 1:
            shares[0] = 9 * (self.num_adapters - 1)
        ends = np.rint(np.cumsum(shares) / shares.sum() * total).astype(int)
        return [int(count) for count in np.diff(ends, prepend=0)]

    @property
    def mean_rank(self) -> int:
        """Of a token."""
        ranks, counts = self.adapter_ranks(), self.row_counts()
        ranked = sum(rank * count for rank, count in zip(ranks, counts, strict=True))
        return max(1, round(ranked / max(1, sum(counts))))


class LayerWeights:
    """Frozen weights of a few equal layers, to be taken in turn."""

    def __init__(
        self, groups: Groups, num_layers: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.groups, self.num_layers = tuple(groups), num_layers
        self.device, self.dtype = device, dtype
        shapes: list[tuple[int, int]] = []
        sites: list[tuple[int, ...]] = []
        for in_features, outs in self.groups * num_layers:
            sites.append(tuple(range(len(shapes), len(shapes) + len(outs))))
            shapes += [(in_features, out) for out in outs]
        self.layout = Layout(tuple(shapes), tuple(sites), FAMILIES * num_layers)
        self.table = site_table(self.layout, device)
        self.weights = [
            torch.randn(out, width, device=device, dtype=dtype).mul_(width**-0.5)
            for width, out in shapes
        ]

    def sites(self, layer: int, group: int) -> tuple[int, ...]:
        """Of a group, in a layer counted modulo their number."""
        return self.layout.groups[layer % self.num_layers * len(self.groups) + group]


class LayerCase:
    """A batch over the layers: activations, adapters of every tenant, and their plan."""

    def __init__(self, base: LayerWeights, mix: Mix, *, tile_rows: int = 64) -> None:
        self.base, self.mix = base, mix
        self.ranks, self.counts = mix.adapter_ranks(), mix.row_counts()
        layout, device, dtype = base.layout, base.device, base.dtype
        sizes = [layout.block_size(rank, ALL) for rank in self.ranks]
        self.blocks = (np.cumsum(sizes) - sizes).tolist()
        elements = sum(sizes) * layout.granule
        self.arena = torch.randn(elements, device=device, dtype=dtype).mul_(0.02)
        self.gradients = torch.full((elements,), float("nan"), device=device)
        units = [
            (owner, min(UNIT_TOKENS, count - first))
            for owner, count in enumerate(self.counts)
            for first in range(0, count, UNIT_TOKENS)
        ]
        plan = build_tiles(
            [rows for _, rows in units],
            num_rows=mix.num_tokens,
            starts=[self.blocks[owner] for owner, _ in units],
            ranks=[self.ranks[owner] for owner, _ in units],
            masks=[ALL for _ in units],
            scales=[32 / self.ranks[owner] for owner, _ in units],
            gradients=[self.blocks[owner] for owner, _ in units],
            is_fresh=[True for _ in units],
            tile_rows=tile_rows,
        )
        buffers = TileBuffers(device, num_segments=len(plan.segments), num_tiles=len(plan.tiles))
        buffers.write(plan)
        self.adapters = Adapters(self.arena, base.table, layout, plan, buffers, self.gradients)
        self.xs = [self._rows(width) for width, _ in base.groups]
        self.dys = [[self._rows(out) for out in outs] for _, outs in base.groups]

    def _rows(self, width: int) -> Tensor:
        base = self.base
        return torch.randn(self.mix.num_tokens, width, device=base.device, dtype=base.dtype)

    def halves(self, owner: int, site: int) -> tuple[slice, slice]:
        """Where A [R, D] and Bt [R, O] of one adapter's site lie in the arena."""
        layout, rank = self.base.layout, self.ranks[owner]
        places = layout.site_offsets(rank, ALL)[site]
        starts = [(self.blocks[owner] + place) * layout.granule for place in places]
        sizes = [rank * granules * layout.granule for granules in layout.row_granules(site)]
        first, second = (slice(a, a + size) for a, size in zip(starts, sizes, strict=True))
        return first, second

    def matrices(self, flat: Tensor, owner: int, site: int) -> tuple[Tensor, Tensor]:
        """A [R, D] and Bt [R, O] of one adapter's site, as views of an arena."""
        width, out = self.base.layout.shapes[site]
        a, bt = (flat[part].view(self.ranks[owner], -1) for part in self.halves(owner, site))
        return a[:, :width], bt[:, :out]


Outputs = tuple[list[Tensor], list[Tensor]]  # y of every site, dx of every group
Form = Callable[[LayerCase, int], Outputs]


def frozen(case: LayerCase, layer: int) -> Outputs:
    """The base alone, by cuBLAS: forward and input gradient."""
    ys, dxs = [], []
    for group, x in enumerate(case.xs):
        weights = [case.base.weights[site] for site in case.base.sites(layer, group)]
        ys += [torch.mm(x, weight.t()) for weight in weights]
        dx = torch.mm(case.dys[group][0], weights[0])
        for weight, dy in zip(weights[1:], case.dys[group][1:], strict=True):
            torch.addmm(dx, dy, weight, out=dx)
        dxs.append(dx)
    return ys, dxs


def frozen_triton(case: LayerCase, layer: int) -> Outputs:
    """The base alone, by the Triton GEMM."""
    ys, dxs = [], []
    for group, x in enumerate(case.xs):
        sites, dx = case.base.sites(layer, group), torch.empty_like(x)
        ys += [gemm.linear(x, case.base.weights[site]) for site in sites]
        for index, (site, dy) in enumerate(zip(sites, case.dys[group], strict=True)):
            gemm.input_gradient(dy, case.base.weights[site], dx, accumulate=index > 0)
        dxs.append(dx)
    return ys, dxs


def beta(case: LayerCase, layer: int) -> Outputs:
    """Adapters first, then cuBLAS adds the base product to what they wrote."""
    ys, dxs = [], []
    for group, x in enumerate(case.xs):
        sites, dys = case.base.sites(layer, group), case.dys[group]
        s = lora.shrink(x, case.adapters, sites)
        outs = [torch.empty_like(dy) for dy in dys]
        lora.expand(s, case.adapters, sites, outs, accumulate=False)
        for site, y in zip(sites, outs, strict=True):
            torch.addmm(y, x, case.base.weights[site].t(), out=y)
        ys += outs
        ds = lora.shrink_gradient(dys, case.adapters, sites)
        lora.weight_gradients(x, dys, s, ds, case.adapters, sites)
        dx = torch.empty_like(x)
        lora.expand_input(ds, case.adapters, sites, dx, accumulate=False)
        for site, dy in zip(sites, dys, strict=True):
            torch.addmm(dx, dy, case.base.weights[site], out=dx)
        dxs.append(dx)
    return ys, dxs


def fused(case: LayerCase, layer: int) -> Outputs:
    """Adapters inside the Triton GEMM."""
    ys, dxs = [], []
    for group, x in enumerate(case.xs):
        sites, dys = case.base.sites(layer, group), case.dys[group]
        weights = [case.base.weights[site] for site in sites]
        s = lora.shrink(x, case.adapters, sites)
        ys += [
            gemm_lora.linear_lora(x, weight, s, case.adapters, sites, index)
            for index, weight in enumerate(weights)
        ]
        ds = lora.shrink_gradient(dys, case.adapters, sites)
        lora.weight_gradients(x, dys, s, ds, case.adapters, sites)
        dx = torch.empty_like(x)
        for index, (weight, dy) in enumerate(zip(weights[:-1], dys[:-1], strict=True)):
            gemm.input_gradient(dy, weight, dx, accumulate=index > 0)
        gemm_lora.input_gradient_lora(
            dys[-1], weights[-1], ds, case.adapters, sites, dx, accumulate=len(sites) > 1
        )
        dxs.append(dx)
    return ys, dxs


def decode(case: LayerCase, layer: int, *, has_adapters: bool = True) -> list[Tensor]:
    """Forward of a few rows, as a decode step does it."""
    ys = []
    for group, x in enumerate(case.xs):
        sites = case.base.sites(layer, group)
        outs = [torch.empty_like(dy) for dy in case.dys[group]]
        if has_adapters:
            s = lora.shrink(x, case.adapters, sites, is_split=True)
            lora.expand(s, case.adapters, sites, outs, accumulate=False)
        for site, y in zip(sites, outs, strict=True):
            weight_DO = case.base.weights[site].t()
            torch.addmm(y, x, weight_DO, out=y) if has_adapters else torch.mm(x, weight_DO, out=y)
        ys += outs
    return ys
