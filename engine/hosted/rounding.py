"""How far logits may differ from the model's own before it is more than rounding.

T rows, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

_DRAWS = 3
# Over the measured noise. Of 22 architectures the worst showed 1.4, where it was measured so.
_MARGIN = 2.0
# In short types a router may choose another expert for a row, by rounding alone.
_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class Rounding:
    """What rounding may do to logits."""

    tolerance: float  # relative RMS error of a row
    share: float  # of the rows that keep to it


# Only the order of sums differs, by about 1e-6; a window, scale or position that is wrong shows as
# 1e-3 to 1 on random weights.
EXACT = Rounding(1e-4, 1.0)


@torch.no_grad()
def measure_rounding(module: Any, probes: Sequence[Tensor], names: Sequence[str]) -> Rounding:
    """Find out how much rounding a module shows by itself.

    In float32 nothing is measured. In a short type the outputs of its linears are moved by up to
    half the distance to the next number, seeded, as another order of sums does, and the error that
    four fifths of the rows keep to is doubled.

    Args:
        names: the linears.
    """
    dtype = module.get_output_embeddings().weight.dtype
    if dtype == torch.float32:
        return EXACT
    eps = torch.finfo(dtype).eps
    random = torch.Generator().manual_seed(0)
    expected_TV = _logits(module, probes)
    hook = partial(_move, random, eps / 2)
    handles = [module.get_submodule(name).register_forward_hook(hook) for name in names]
    try:
        errors = [row_errors(_logits(module, probes), expected_TV) for _ in range(_DRAWS)]
    finally:
        for handle in handles:
            handle.remove()
    noise = float(torch.cat(errors).quantile(_SHARE))
    return Rounding(max(_MARGIN * noise, eps), _SHARE)


def _logits(module: Any, probes: Sequence[Tensor]) -> Tensor:
    return torch.cat([module(input_ids=each[None], use_cache=False).logits[0] for each in probes])


def _move(random: torch.Generator, most: float, _: Any, inputs: Any, output: Tensor) -> Tensor:
    shares = torch.rand(output.shape, generator=random).to(output.device)
    return (output.float() * (1 + most * (2 * shares - 1))).to(output.dtype)


def row_errors(found_TV: Tensor, expected_TV: Tensor) -> Tensor:
    """The relative RMS error of each row, [T] float64."""
    expected = expected_TV.double()
    norms_T: Tensor = torch.linalg.vector_norm(expected, dim=-1).clamp_min(1e-30)
    errors_T: Tensor = torch.linalg.vector_norm(found_TV.double() - expected, dim=-1)
    return errors_T / norms_T


def disagreement(found_TV: Tensor, expected_TV: Tensor, rounding: Rounding) -> str:
    """How logits differ by more than rounding; "" when they do not."""
    if found_TV.shape != expected_TV.shape:
        return f"logits are {tuple(found_TV.shape)}, not {tuple(expected_TV.shape)}"
    if not found_TV.isfinite().all():
        return "logits are not finite"
    errors_T = row_errors(found_TV, expected_TV)
    if float((errors_T <= rounding.tolerance).double().mean()) >= rounding.share:
        return ""
    return (
        f"logits differ by {float(errors_T.max()):.1e} of their norm "
        f"(allowed {rounding.tolerance:.1e})"
    )
