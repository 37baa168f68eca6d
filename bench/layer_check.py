"""Compare what a form of a layer's linears computes with float64, before anybody times it."""

from collections.abc import Callable
from math import sqrt

import torch
from gpu_timing import poisoned
from layer_case import Form, LayerCase
from torch import Tensor

# Relative RMS error. bfloat16 keeps 8 bits: each rounding costs up to 2^-9, of an intermediate and
# of a result. float32 sums of some ten thousand products.
BOUNDS = {torch.bfloat16: 8e-3, torch.float32: 1e-5}


Pairs = list[tuple[Tensor, Tensor]]  # found, exact


class WrongResult(RuntimeError):
    """A form does not compute what it should, so its time is worth nothing."""


def check(name: str, form: Form, case: LayerCase) -> dict[str, float]:
    """Relative RMS errors of outputs, input gradients and adapters' gradients of the first layer.

    Everything that is allocated meanwhile holds NaN first.

    Raises:
        WrongResult: an error above the bound, or NaN.
    """
    case.gradients.fill_(float("nan"))
    with poisoned():
        ys, dxs = form(case, 0)
    exact_ys, exact_dxs, gradients = _expected(case)
    return _judged(
        f"{name} of {case.mix}",
        case.base.dtype,
        {
            "y": list(zip(ys, exact_ys, strict=True)),
            "dx": list(zip(dxs, exact_dxs, strict=True)),
            "gradient": gradients,
        },
    )


def check_outputs(
    name: str, form: Callable[[LayerCase, int], list[Tensor]], case: LayerCase
) -> dict[str, float]:
    """The same of a form that computes outputs alone."""
    with poisoned():
        ys = form(case, 0)
    pairs = {"y": list(zip(ys, _expected(case)[0], strict=True))}
    return _judged(f"{name} of {case.mix}", case.base.dtype, pairs)


def _expected(case: LayerCase) -> tuple[list[Tensor], list[Tensor], Pairs]:
    """Outputs and input gradients in float64; what is found and expected of gradients."""
    ys, dxs, gradients = [], [], Pairs()
    for group, x in enumerate(case.xs):
        dxs.append(torch.zeros_like(x, dtype=torch.float64))
        for site, dy in zip(case.base.sites(0, group), case.dys[group], strict=True):
            ys.append(_site(case, site, x, dy, dxs[-1], gradients))
    return ys, dxs, gradients


def _judged(name: str, dtype: torch.dtype, found: dict[str, Pairs]) -> dict[str, float]:
    errors = {part: _error(pairs) for part, pairs in found.items()}
    if not all(error <= BOUNDS[dtype] for error in errors.values()):
        raise WrongResult(f"{name}: errors {errors}, not at most {BOUNDS[dtype]}")
    return errors


def _site(
    case: LayerCase,
    site: int,
    x: Tensor,
    dy: Tensor,
    dx: Tensor,
    gradients: Pairs,
) -> Tensor:
    """y of one site in float64; adds to dx, and what is found and expected of the gradients."""
    weight = case.base.weights[site].double()
    y, start = x.double() @ weight.t(), 0
    dx += dy.double() @ weight
    for owner, count in enumerate(case.counts):
        rows = slice(start, start + count)
        start += count
        if not count:
            continue
        scale = 32 / case.ranks[owner]
        a_RD, bt_RO = (half.double() for half in case.matrices(case.arena, owner, site))
        s, ds = scale * x[rows].double() @ a_RD.t(), scale * dy[rows].double() @ bt_RO.t()
        y[rows] += s @ bt_RO
        dx[rows] += ds @ a_RD
        da_RD, dbt_RO = case.matrices(case.gradients, owner, site)
        gradients += [(da_RD, ds.t() @ x[rows].double()), (dbt_RO, s.t() @ dy[rows].double())]
    return y


def _error(pairs: Pairs) -> float:
    wrong = sum(float((found.double() - exact).square().sum()) for found, exact in pairs)
    return sqrt(wrong / sum(float(exact.square().sum()) for _, exact in pairs))
