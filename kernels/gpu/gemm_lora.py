"""The products of `gemm.py` with the adapters' part inside: rounded once, written once.

One launch for each rank bucket that the batch has, rows without adapter among them. The base sums
are those of `gemm.py` to the bit; the rank rows are added to them in order.
T rows, D input features, O output features, G sites of a group.
"""

from collections.abc import Sequence

from torch import Tensor

from .adapters import BT, A, Adapters
from .gemm import arguments_of, grid_of, output_of
from .gemm_kernel import blocks_of, gemm_variant, is_even

__all__ = ["input_gradient_lora", "linear_lora"]


def linear_lora(
    x_TD: Tensor,
    weight_OD: Tensor,
    s: Tensor,
    adapters: Adapters,
    sites: Sequence[int],
    index: int,
    out: Tensor | None = None,
    *,
    bias: Tensor | None = None,
) -> Tensor:
    """Apply one linear layer of a group with its adapters.

        y[t] = W x[t] + B s_g[t] + bias    B of the adapter of row t

    Args:
        x_TD, weight_OD, out, bias: as of `gemm.linear`.
        s: as `lora.shrink` returns it for the group, not split.
        sites: of the group.
        index: g, which of them it is.

    Raises:
        ValueError: a shape, dtype or layout differs from the above.
    """
    y = output_of(x_TD, weight_OD, out, bias, is_forward=True, accumulate=False)
    size = adapters.plan.s_elements
    part = s[index * size : (index + 1) * size]
    _launch(x_TD, weight_OD, y, bias, part, adapters, sites[index : index + 1], BT)
    return y


def input_gradient_lora(
    dy_TO: Tensor,
    weight_OD: Tensor,
    ds: Tensor,
    adapters: Adapters,
    sites: Sequence[int],
    out: Tensor | None = None,
    *,
    accumulate: bool = False,
) -> Tensor:
    """Gradient of the input by one linear layer of a group, and by the adapters of all of them.

        dx[t] (+)= dy[t] W + sum over g, in order, of A_g^T ds_g[t]

    For the last linear of a group, after `gemm.input_gradient` of the others.

    Args:
        dy_TO, weight_OD, out, accumulate: as of `gemm.input_gradient`.
        ds: as `lora.shrink_gradient` returns it for the group.
        sites: of the group.

    Raises:
        ValueError: a shape, dtype or layout differs from the above.
    """
    dx = output_of(dy_TO, weight_OD, out, None, is_forward=False, accumulate=accumulate)
    _launch(dy_TO, weight_OD, dx, None, ds, adapters, sites, A, accumulate)
    return dx


def _launch(
    x: Tensor,
    weight_OD: Tensor,
    y: Tensor,
    bias: Tensor | None,
    s: Tensor,
    adapters: Adapters,
    sites: Sequence[int],
    half: int,
    accumulate: bool = False,
) -> None:
    """One launch for each bucket in use; `s` has a part for each of the sites."""
    plan, layout, buffers = adapters.plan, adapters.layout, adapters.buffers
    for site in sites:
        if len(x) != plan.num_rows or y.shape[1] != layout.shapes[site][half]:
            shape = plan.num_rows, layout.shapes[site][half]
            raise ValueError(f"site {site} of the plan takes {shape}, not {tuple(y.shape)}")
    if list(sites) != list(range(sites[0], sites[0] + len(sites))):
        raise ValueError(f"sites {tuple(sites)} are not neighbours")
    if len({x.dtype, s.dtype, adapters.weights.dtype}) > 1:
        raise ValueError(f"rows of {x.dtype}, s of {s.dtype}, adapters of {adapters.weights.dtype}")
    if s.shape != (len(sites) * plan.s_elements,):
        raise ValueError(f"a projection {tuple(s.shape)}, not {len(sites)} x {plan.s_elements}")
    plain = arguments_of(x, weight_OD, bias, y) | {
        "header_ptr": buffers.header,
        "tiles_ptr": buffers.tiles,
        "segments_ptr": buffers.segments,
    }
    inside = plain | {
        "s_ptr": s,
        "adapters_ptr": adapters.weights,
        "num_summed": len(sites),
        "s_units": adapters.s_units,
        "granule_units": adapters.granule_units,
        "pitch": layout.row_granules(sites[0])[half] * layout.granule,
        **adapters.site_arguments(sites[0], half),
    }
    heights = blocks_of(x.dtype).heights
    for bucket in (0, *plan.used_buckets):
        gemm_variant(
            x.dtype,
            next(height for height in heights if plan.tile_rows <= height),
            is_forward=half == BT,
            is_even=is_even(x.dtype, x.shape[1], y.shape[1]),
            has_bias=bias is not None,
            accumulate=accumulate,
            bucket=bucket,
        ).launch(grid_of(plan.num_tiles(bucket), y), **(inside if bucket else plain))
