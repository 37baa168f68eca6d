"""Multi-LoRA linears over a plan of tiles: the Triton form of `kernels/lora.py`.

A group's sites read the same rows x. Forward: s = shrink(x), y (+)= expand(s). Backward: ds =
shrink_gradient(dys), dx (+)= expand_input(ds), and weight_gradients from x, dy, s and ds. Work goes
by rank bucket: one launch for each that the batch has, whatever the number of adapters.

A projection, s or ds, is a flat tensor of one part of `plan.s_elements` for each site. Row t of a
segment lies at s_start * 16 + (t - first row) * bucket of a site's part, with zeros from the
adapter's rank on. Parts of sites that an adapter does not target are not written, nor read.

No result of a row or a run depends on what else is in the batch, in no bit: sums over columns, rank
rows and rows of units follow trees that static shapes and the run's own units decide.
T rows, D input features, O output features, G sites of a group.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import expand as expanding
from . import expand_swiglu as fused
from . import shrink as shrinking
from . import wgrad
from .adapters import BT, A, Adapters, alike

__all__ = [
    "Adapters",
    "expand",
    "expand_input",
    "expand_swiglu",
    "shrink",
    "shrink_gradient",
    "weight_gradients",
]


def shrink(
    x_TD: Tensor, adapters: Adapters, sites: Sequence[int], *, is_split: bool = False
) -> Tensor:
    """Project every row onto the rank space of its segment's adapter, for all sites of a group.

        s_g[t] = scale * A_g x[t]

    Products accumulate in float32; scaled once, then rounded to the dtype of x.

    Args:
        x_TD: [T, D], contiguous.
        sites: of one group, ascending without gaps.
        is_split: leave the sum over the slabs of D to `expand`, for batches of few tiles.

    Returns:
        s, [G * s_elements]. Where `is_split` and D has several slabs: float32 planes
        [slabs, G * s_elements], which only `expand` and `expand_swiglu` accept; same bits of y.

    Source: SGMV, Chen et al., "Punica: Multi-Tenant LoRA Serving", 2023, section 4.
    """
    xs = [x_TD] * len(sites)
    adapters.check_sites(sites, xs, A)
    s = x_TD.new_empty(len(sites) * adapters.plan.s_elements)
    return shrinking.launch(xs, s, adapters, sites[0], A, is_split=is_split)


def shrink_gradient(
    dys: Sequence[Tensor | None], adapters: Adapters, sites: Sequence[int]
) -> Tensor:
    """Gradient of the unscaled projections: ds_g[t] = scale * B_g^T dy_g[t].

    Args:
        dys: [T, O_g] of every site, contiguous; None for zeros.

    Returns:
        ds, [G * s_elements], of the dtype of the dys.

    Raises:
        ValueError: no dy at all.
    """
    adapters.check_sites(sites, dys, BT)
    given = [dy for dy in dys if dy is not None]
    if not given:
        raise ValueError("no gradient of any output")
    size = adapters.plan.s_elements
    ds = given[0].new_empty(len(sites) * size)
    for places in alike(dys):
        part = ds[places[0] * size : (places[-1] + 1) * size]
        alike_dys = [dy for dy in (dys[place] for place in places) if dy is not None]
        if alike_dys:
            shrinking.launch(alike_dys, part, adapters, sites[places[0]], BT)
        else:
            part.zero_()
    return ds


def expand(
    s: Tensor,
    adapters: Adapters,
    sites: Sequence[int],
    ys: Sequence[Tensor],
    *,
    accumulate: bool,
) -> None:
    """Take projections to the outputs of every site: y_g[t] (+)= B_g s_g[t].

    The sum over rank rows, and y with it, accumulates in float32 and is rounded once.

    Args:
        s: as `shrink` returns it.
        ys: [T, O_g] of every site, contiguous, of the dtype of the weights.
        accumulate: add, and do not touch rows that no adapter applies to. Otherwise write every row
            of the batch, zeros there.
    """
    adapters.check_sites(sites, ys, BT)
    size = adapters.plan.s_elements
    for places in alike(ys):
        expanding.launch(
            s[..., places[0] * size :],
            adapters,
            [ys[place] for place in places],
            site=sites[places[0]],
            half=BT,
            accumulate=accumulate,
        )


def expand_swiglu(
    s: Tensor,
    adapters: Adapters,
    sites: Sequence[int],
    gate_TF: Tensor,
    up_TF: Tensor,
    *,
    keep: bool,
) -> Tensor:
    """Add the adapters' part to gate and up, and return silu(gate) * up, [T, F].

    Same bits as `expand` with `accumulate`, then `swiglu.swiglu`.

    Args:
        s: as `shrink` returns it.
        sites: gate and up.
        keep: write the sums to gate and up, for the backward pass. Otherwise they stay.
    """
    adapters.check_sites(sites, [gate_TF, up_TF], BT)
    h_TF = torch.empty_like(gate_TF)
    fused.launch(s, adapters, sites[0], gate_TF, up_TF, h_TF, keep=keep)
    return h_TF


def expand_input(
    ds: Tensor, adapters: Adapters, sites: Sequence[int], dx_TD: Tensor, *, accumulate: bool
) -> None:
    """Gradient of the input: dx[t] (+)= sum over the sites, in order, of A_g^T ds_g[t].

    As `expand`; all sites are added in float32 and rounded once.
    """
    adapters.check_sites(sites, [dx_TD] * len(sites), A)
    expanding.launch(
        ds,
        adapters,
        [dx_TD],
        site=sites[0],
        half=A,
        num_summed=len(sites),
        accumulate=accumulate,
    )


def weight_gradients(
    x_TD: Tensor,
    dys: Sequence[Tensor | None],
    s: Tensor,
    ds: Tensor,
    adapters: Adapters,
    sites: Sequence[int],
) -> None:
    """Add the gradients of A and Bt of a group to the blocks of the plan's entries.

        dA_g += ds_g^T x        dBt_g += s_g^T dy_g        over the rows of an entry's units

    See `wgrad_chunks.py` for the order of the sums. Blocks that the plan calls fresh are written
    from zero, with the padding of their rows; of sites that the adapter targets, those of the group
    only.

    Args:
        x_TD: the input of `shrink`.
        dys: the input of `shrink_gradient`.
        s, ds: what they returned, not split.
    """
    xs = [x_TD] * len(sites)
    adapters.check_sites(sites, xs, A)
    adapters.check_sites(sites, dys, BT)
    wgrad.launch(xs, ds, adapters, sites[0], A)
    size = adapters.plan.s_elements
    for places in alike(dys):
        width = adapters.layout.shapes[sites[places[0]]][1]
        given = [dys[place] for place in places]
        wgrad.launch(
            [x_TD.new_zeros(len(x_TD), width) if dy is None else dy for dy in given],
            s[places[0] * size : (places[-1] + 1) * size],
            adapters,
            sites[places[0]],
            BT,
        )
