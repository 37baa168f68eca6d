"""Flat blocks as named matrices in PEFT's orientation, and back.

R rank, D input features, O output features.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ...client.errors import BadRequest
from ...kernels.layout import Layout
from ..model.config import Site
from .targets import Targets

_MOMENTS = ("moment1.", "moment2.")


def named_matrices(
    layout: Layout, sites: Sequence[Site], flat: Tensor, rank: int, targets: Targets
) -> dict[str, Tensor]:
    """Views of a flat block: `<site>.lora_a` [R, D] and `<site>.lora_b` [O, R]."""
    granule = layout.granule
    matrices: dict[str, Tensor] = {}
    for site, offsets in layout.site_offsets(rank, targets).items():
        a_rows, b_rows = (
            flat[offset * granule :][: rank * row * granule].view(rank, row * granule)[:, :width]
            for offset, row, width in zip(
                offsets, layout.row_granules(site), layout.shapes[site], strict=True
            )
        )
        matrices[f"{sites[site].name}.lora_a"] = a_rows
        matrices[f"{sites[site].name}.lora_b"] = b_rows.t()
    return matrices


def copies(prefix: str, matrices: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of matrices, fp32 on the host, under their names after a prefix."""
    return {
        prefix + name: matrix.detach().to("cpu", torch.float32, copy=True).contiguous()
        for name, matrix in matrices.items()
    }


def fill(matrices: Mapping[str, Tensor], prefix: str, tensors: Mapping[str, Tensor]) -> None:
    """Write the tensors of these names after a prefix into matrices."""
    for name, matrix in matrices.items():
        matrix.copy_(tensors[prefix + name])


def check_tensors(
    layout: Layout,
    sites: Sequence[Site],
    tensors: Mapping[str, Tensor],
    rank: int,
    targets: Targets,
    prefixes: Sequence[str],
) -> None:
    """Raise BadRequest unless these are the finite tensors of an adapter, for every prefix.

    Moments may be there although no prefix asks for them.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for site in layout.site_offsets(rank, targets):
        in_features, out_features = layout.shapes[site]
        for prefix in prefixes:
            shapes[f"{prefix}{sites[site].name}.lora_a"] = (rank, in_features)
            shapes[f"{prefix}{sites[site].name}.lora_b"] = (out_features, rank)
    allowed = {name for name in tensors if name.startswith(_MOMENTS)} | set(shapes)
    if extra := sorted(set(tensors) - allowed):
        raise BadRequest(f"the state has {extra[0]!r}, which this adapter does not")
    for name, shape in shapes.items():
        if name not in tensors:
            raise BadRequest(f"the state lacks {name!r}")
        if tuple(tensors[name].shape) != shape:
            raise BadRequest(f"{name!r} is {tuple(tensors[name].shape)}, not {shape}")
        if not torch.isfinite(tensors[name]).all():
            raise BadRequest(f"{name!r} is not finite", "non_finite")
