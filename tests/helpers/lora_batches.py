"""Batches of several tenants for the multi-LoRA kernels, and what they must give.

Arenas are NaN wherever no adapter's own elements lie, so that whatever is read or written beside
them is seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import sqrt

import torch
from torch import Tensor

from weft.kernels.gpu.lora import (
    Adapters,
    expand,
    expand_input,
    shrink,
    shrink_gradient,
    weight_gradients,
)
from weft.kernels.gpu.tiles import (
    BUCKETS,
    SEGMENT_RANK,
    SEGMENT_S,
    TileBuffers,
    bucket_index,
    build_tiles,
    site_table,
)
from weft.kernels.layout import Layout
from weft.kernels.reference import Adapter, lora_linear

NAN = float("nan")


@dataclass(frozen=True, eq=False)
class Tenant:
    """An adapter; equal seeds have equal weights."""

    rank: int
    mask: int = 1
    seed: int = 0
    is_fresh: bool = True

    @property
    def scale(self) -> float:
        return 32.0 / self.rank


Unit = tuple[Tenant | None, int]  # whose, and how many rows


def one_group(in_features: int, *out_features: int) -> Layout:
    """A layout with a single group."""
    shapes = tuple((in_features, width) for width in out_features)
    return Layout(shapes, (tuple(range(len(shapes))),), (1,))


def random_rows(tenant: Tenant | None, rows: int, width: int, salt: int = 0) -> Tensor:
    """Activations of a unit, the same wherever it stands."""
    seed = 1000 * rows + 10 * salt + (tenant.seed if tenant else 999_999)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width, generator=generator)


@dataclass
class Batch:
    """A plan with everything on the device."""

    layout: Layout
    units: Sequence[Unit]
    dtype: torch.dtype
    adapters: Adapters
    starts: dict[int, int]  # first granule of a tenant's block, by id
    num_rows: int
    device: torch.device
    sites: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.sites = tuple(range(len(self.layout.shapes)))

    def rows(self, width: int, salt: int = 0) -> Tensor:
        """[T, width] of random activations; unit by unit what `random_rows` gives."""
        parts = [random_rows(tenant, rows, width, salt) for tenant, rows in self.units]
        parts.append(random_rows(None, self.num_rows - sum(map(len, parts)), width, salt))
        return torch.cat(parts).to(self.device, self.dtype)

    def matrices(self, tenant: Tenant, arena: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
        """Views of a tenant's A rows and Bt rows by site, with their padding."""
        layout, found = self.layout, {}
        start = self.starts[id(tenant)]
        for site, places in layout.site_offsets(tenant.rank, tenant.mask).items():
            views = []
            for place, granules in zip(places, layout.row_granules(site), strict=True):
                first, pitch = (start + place) * layout.granule, granules * layout.granule
                views.append(arena[first : first + tenant.rank * pitch].view(tenant.rank, pitch))
            found[site] = (views[0], views[1])
        return found

    def gradient(self, tenant: Tenant, site: int, half: int) -> Tensor:
        """The gradient of a tenant's rows, without padding."""
        assert self.adapters.gradients is not None
        rows = self.matrices(tenant, self.adapters.gradients)[site][half]
        return rows[:, : self.layout.shapes[site][half]]

    def oracle_adapters(self, site: int) -> list[Adapter | None]:
        """Leaves in float64, one a tenant, of what is in the arena; None where not targeted."""
        leaves: dict[int, Adapter] = {}
        for tenant, _ in self.units:
            if tenant and id(tenant) not in leaves:
                own = self.matrices(tenant, self.adapters.weights.cpu())
                if site in own:
                    a, bt = (
                        view[:, :width].double().contiguous()
                        for view, width in zip(own[site], self.layout.shapes[site], strict=True)
                    )
                    leaves[id(tenant)] = Adapter(
                        a.requires_grad_(), bt.t().requires_grad_(), tenant.scale
                    )
        return [leaves.get(id(tenant)) for tenant, _ in self.units]


def make_batch(
    layout: Layout,
    units: Sequence[Unit],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    *,
    tile_rows: int = 64,
    num_rows: int | None = None,
    unit_order: Sequence[int] | None = None,
    gradients: "Batch | None" = None,
) -> Batch:
    """Arena, gradients and plan of a batch.

    Args:
        num_rows: of the batch; default those of the units.
        gradients: an earlier batch whose gradient arena is added to.
    """
    counts = [rows for _, rows in units]
    tenants = {id(tenant): tenant for tenant, _ in units if tenant}
    starts, end = {}, 3
    for key, tenant in tenants.items():
        starts[key] = end
        end += layout.block_size(tenant.rank, tenant.mask) + 2
    if gradients is not None:
        starts = gradients.starts
        end = gradients.adapters.weights.numel() // layout.granule
    plan = build_tiles(
        counts,
        num_rows=sum(counts) if num_rows is None else num_rows,
        starts=[starts[id(tenant)] if tenant else 0 for tenant, _ in units],
        ranks=[tenant.rank if tenant else 0 for tenant, _ in units],
        masks=[tenant.mask if tenant else 0 for tenant, _ in units],
        scales=[tenant.scale if tenant else 0.0 for tenant, _ in units],
        gradients=[starts[id(tenant)] if tenant else -1 for tenant, _ in units],
        is_fresh=[bool(tenant and tenant.is_fresh and gradients is None) for tenant, _ in units],
        unit_order=unit_order,
        tile_rows=tile_rows,
    )
    buffers = TileBuffers(device)
    buffers.write(plan)
    planes = torch.full((end * layout.granule,), NAN, device=device)
    if gradients is not None:
        assert gradients.adapters.gradients is not None
        planes = gradients.adapters.gradients
    adapters = Adapters(
        weights=torch.full((end * layout.granule,), NAN, dtype=dtype, device=device),
        table=site_table(layout, device),
        layout=layout,
        plan=plan,
        buffers=buffers,
        gradients=planes,
    )
    batch = Batch(layout, units, dtype, adapters, starts, plan.num_rows, device)
    for tenant in tenants.values():
        _fill(batch, tenant, is_first=gradients is None)
    return batch


def _fill(batch: Batch, tenant: Tenant, is_first: bool) -> None:
    generator = torch.Generator().manual_seed(tenant.seed)
    planes = batch.adapters.gradients
    assert planes is not None
    for site, halves in batch.matrices(tenant, batch.adapters.weights).items():
        for half, rows in enumerate(halves):
            width = batch.layout.shapes[site][half]
            values = torch.randn(tenant.rank, width, generator=generator)
            values *= width**-0.5 if half == 0 else tenant.rank**-0.5
            rows[:, :width] = values.to(batch.device, batch.dtype)
            if is_first and not tenant.is_fresh:
                old = batch.matrices(tenant, planes)[site][half]
                old.copy_(torch.randn(old.shape, generator=generator).to(batch.device))
                old[:, width:] = 0


@dataclass
class Exact:
    """What a group must give, in float64."""

    ys: list[Tensor]
    dx: Tensor
    adapters: list[list[Adapter | None]]  # by site, then unit; their leaves have gradients


def exact_group(batch: Batch, x_TD: Tensor, dys: Sequence[Tensor | None]) -> Exact:
    """The adapters' part of a group, forward and every gradient by autograd."""
    x = x_TD.detach().cpu().double().requires_grad_()
    counts = [rows for _, rows in batch.units]
    ys, adapters = [], []
    for site in batch.sites:
        adapters.append(batch.oracle_adapters(site))
        weight = torch.zeros(batch.layout.shapes[site][::-1], dtype=torch.float64)
        ys.append(lora_linear(x, weight, None, counts, adapters[-1]))
    given = [(y, dy.cpu().double()) for y, dy in zip(ys, dys, strict=True) if dy is not None]
    torch.autograd.backward([y for y, _ in given], [dy for _, dy in given])
    assert x.grad is not None
    return Exact([y.detach() for y in ys], x.grad, adapters)


@dataclass
class Found:
    """What the kernels gave; gradients of adapters are in the batch's arena."""

    s: Tensor
    ds: Tensor
    ys: list[Tensor]
    dx: Tensor


def run_group(batch: Batch, x_TD: Tensor, dys: Sequence[Tensor | None]) -> Found:
    """Forward and backward of the only group, into outputs that begin as NaN."""
    adapters, sites = batch.adapters, batch.sites
    widths = [width for _, width in batch.layout.shapes]
    s = shrink(x_TD, adapters, sites)
    ys = [x_TD.new_full((batch.num_rows, width), NAN) for width in widths]
    expand(s, adapters, sites, ys, accumulate=False)
    ds = shrink_gradient(dys, adapters, sites)
    dx = torch.full_like(x_TD, NAN)
    expand_input(ds, adapters, sites, dx, accumulate=False)
    weight_gradients(x_TD, dys, s, ds, adapters, sites)
    return Found(s, ds, ys, dx)


def torch_group(batch: Batch, x_TD: Tensor, dys: Sequence[Tensor]) -> tuple[Found, list[Tensor]]:
    """The same by PyTorch in the batch's dtype, segment by segment.

    Returns:
        Outputs, and gradients of A and of Bt by tenant in the order of its first unit, then site.
    """
    x, no_s = x_TD.cpu(), x_TD.new_empty(0)
    ys = [x.new_zeros(batch.num_rows, width) for _, width in batch.layout.shapes]
    gradients: dict[tuple[int, int, int], Tensor] = {}
    dx, row = torch.zeros_like(x), 0
    for tenant, count in batch.units:
        rows = slice(row, row + count)
        row += count
        own = batch.matrices(tenant, batch.adapters.weights.cpu()) if tenant else {}
        for site, (a, bt) in own.items():
            assert tenant is not None
            a, bt = (m[:, :n] for m, n in zip((a, bt), batch.layout.shapes[site], strict=True))
            dy = dys[site][rows].cpu()
            s, ds = (x[rows] @ a.t()) * tenant.scale, (dy @ bt.t()) * tenant.scale
            ys[site][rows] += s @ bt
            dx[rows] += ds @ a
            for half, product in enumerate((ds.t() @ x[rows], s.t() @ dy)):
                key = (id(tenant), site, half)
                gradients[key] = gradients[key] + product if key in gradients else product
    return Found(no_s, no_s, ys, dx), list(gradients.values())


def all_gradients(batch: Batch) -> list[Tensor]:
    """Gradients in the arena, in the order of `torch_group`."""
    tenants = {id(tenant): tenant for tenant, rows in batch.units if tenant and rows}
    return [
        batch.gradient(tenant, site, half)
        for tenant in tenants.values()
        for site in batch.layout.site_offsets(tenant.rank, tenant.mask)
        for half in (0, 1)
    ]


def exact_gradients(batch: Batch, exact: Exact) -> list[Tensor]:
    """The oracle's, in the same order."""
    tenants = {id(tenant): index for index, (tenant, rows) in enumerate(batch.units) if rows}
    firsts = {id(tenant): None for tenant, rows in batch.units if tenant and rows}
    found = []
    for key in firsts:
        for by_unit in exact.adapters:
            adapter = by_unit[tenants[key]]
            if adapter is not None:
                assert adapter.lora_a.grad is not None
                assert adapter.lora_b.grad is not None
                found += [adapter.lora_a.grad, adapter.lora_b.grad.t()]
    return found


def relative_error(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """Root mean square of the differences over that of the exact values, over all tensors."""
    differences = sum(
        float((a.cpu().double() - b).square().sum()) for a, b in zip(found, exact, strict=True)
    )
    return sqrt(differences / sum(float(b.square().sum()) for b in exact))


def bits_of(batch: Batch, found: Found, tenant: Tenant) -> list[Tensor]:
    """Everything that concerns one tenant: its rows of all results, and its gradients."""
    results, row = [], 0
    plan = batch.adapters.plan
    for unit, (owner, count) in enumerate(batch.units):
        if owner is tenant:
            results += [y[row : row + count] for y in (*found.ys, found.dx)]
            results += [
                projection(batch, s, site, unit)
                for s in (found.s, found.ds)
                for site in batch.sites
            ]
        row += count
    assert plan.num_rows >= row
    return results + [batch.gradient(tenant, site, half) for site in batch.sites for half in (0, 1)]


def projection(batch: Batch, s: Tensor, site: int, unit: int) -> Tensor:
    """The rows of one unit in the part of a site, [rows, bucket]."""
    plan = batch.adapters.plan
    record = plan.segments[unit]
    bucket = BUCKETS[int(bucket_index(record[SEGMENT_RANK : SEGMENT_RANK + 1])[0])]
    start = site * plan.s_elements + int(record[SEGMENT_S]) * 16
    rows = batch.units[unit][1]
    return s[start : start + rows * bucket].view(rows, bucket)
