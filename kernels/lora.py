"""Multi-LoRA linears as batched matmuls over padded entries: the CPU form, and CUDA through torch.

Every function works on one block of the segment plan: E entries of L rows each, one adapter per
entry, ranks padded to R with zero rows. Rows that pad an entry are zero by selection. The oracle
is `reference.lora_group`.
E entries, L rows of an entry, D input features, O output features, R padded rank, G sites of a
group, T rows of the batch.
"""

import torch
from torch import Tensor

from .plan import Block
from .products import Products


class Rows:
    """Moves rows between the packed batch and the entries of one block.

    `gather` and `add` touch the block's rows only. Where the entries are not adjacent whole rows,
    padding is read from the first row of the batch and then overwritten with zeros, and written to
    a row of its own behind the batch, which nobody reads.
    """

    def __init__(
        self, block: Block, num_rows: int, device: torch.device, products: Products
    ) -> None:
        self.shape = (block.num_entries, block.length)
        self.start = block.start
        self._products = products
        if block.start >= 0:
            return
        rows = torch.from_numpy(block.rows).to(device)
        self._sources = rows.clamp(min=0)
        self._sinks = rows.where(rows >= 0, num_rows)
        self._padding = (rows < 0).nonzero().squeeze(1)

    @property
    def is_view(self) -> bool:
        return self.start >= 0

    def gather(self, x_TD: Tensor, name: str) -> Tensor:
        """The block's rows, [E, L, D]: a view of x, or a padded copy in the workspace."""
        if self.start >= 0:
            return self._products.as_operand(name, self._view(x_TD))
        (entries, length), width = self.shape, x_TD.shape[1]
        copy = self._products.operand(name, entries * length, width, x_TD.dtype)
        torch.index_select(x_TD, 0, self._sources, out=copy)
        if len(self._padding):
            copy.index_fill_(0, self._padding, 0)
        return copy.view(entries, length, width)

    def add_product(self, y_TO: Tensor, left_ELR: Tensor, right_ERO: Tensor) -> None:
        """Add left @ right to the block's rows of y; y has a spare row unless `is_view`."""
        products = self._products
        if self.start >= 0:
            products.add(self._view(y_TO), left_ELR, right_ERO)
            return
        width = right_ERO.shape[2]
        product = products.result(len(self._sinks), width, y_TO.dtype)
        products.write(product.view(*self.shape, width), left_ELR, right_ERO)
        y_TO.index_add_(0, self._sinks, product)

    def _view(self, x_TD: Tensor) -> Tensor:
        entries, length = self.shape
        return x_TD[self.start : self.start + entries * length].view(entries, length, -1)


def shrink(x_ELD: Tensor, a_ERD: Tensor, scale_E: Tensor, products: Products) -> Tensor:
    """Project rows onto the rank space of their entry's adapter: s = scale * x A^T, [E, L, R].

    Scaled here once, so that expand and the gradients of A and B need no scale. For a group, R is
    the rank rows of all its sites.

    Source: SGMV, Chen et al., "Punica: Multi-Tenant LoRA Serving", 2023, section 4.
    """
    return products.multiply(x_ELD, a_ERD.transpose(1, 2)).mul_(scale_E[:, None, None])


def shrink_gradient(
    dys_ELO: list[Tensor | None],
    bts_ERO: list[Tensor],
    scale_E: Tensor,
    products: Products,
) -> Tensor:
    """Gradient of the unscaled projections of a group's sites: ds = scale * dy B, [E, L, G * R]."""
    parts = []
    for dy_ELO, bt_ERO in zip(dys_ELO, bts_ERO, strict=True):
        if dy_ELO is not None:
            parts.append(products.multiply(dy_ELO, bt_ERO.transpose(1, 2)))
    shape = parts[0].shape
    blank = None if len(parts) == len(bts_ERO) else parts[0].new_zeros(shape)
    ready = iter(parts)
    sites = [blank if dy is None else next(ready) for dy in dys_ELO]
    ds = parts[0] if len(sites) == 1 else torch.cat([site for site in sites if site is not None], 2)
    return ds.mul_(scale_E[:, None, None])


def weight_gradient(out_ERD: Tensor, s_ELR: Tensor, x_ELD: Tensor, products: Products) -> None:
    """Write s^T x, the gradient of rank rows, to an fp32 plane [E, R, D]."""
    left = s_ELR.transpose(1, 2)
    if s_ELR.dtype == out_ERD.dtype:
        products.write(out_ERD, left, x_ELD)
    elif s_ELR.is_cuda:
        torch.bmm(left, x_ELD, out_dtype=out_ERD.dtype, out=out_ERD)
    else:
        products.write(out_ERD, left.to(out_ERD.dtype), x_ELD.to(out_ERD.dtype))


def add_weight_gradient(
    out_ERD: Tensor,
    s_ELR: Tensor,
    x_ELD: Tensor,
    products: Products,
) -> None:
    """Add s^T x to an fp32 plane [E, R, D]."""
    left, right = s_ELR.transpose(1, 2).to(out_ERD.dtype), x_ELD.to(out_ERD.dtype)
    products.add(out_ERD, left, right)
