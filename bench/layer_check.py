"""Compare what a form of a layer's linears computes with float64, before anybody times it."""

import torch
from gpu_timing import poisoned
from layer_case import Form, LayerCase
from torch import Tensor

# Relative RMS error. bfloat16 keeps 8 bits: each rounding costs up to 2^-9, of an intermediate and
# of a result. float32 sums of some ten thousand products.
BOUNDS = {torch.bfloat16: 8e-3, torch.float32: 1e-5}


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
    found: dict[str, list[tuple[Tensor, Tensor]]] = {"y": [], "dx": [], "gradient": []}
    first = 0
    for group, x in enumerate(case.xs):
        sites = case.base.sites(0, group)
        dx = torch.zeros_like(x, dtype=torch.float64)
        for site, dy in zip(sites, case.dys[group], strict=True):
            y = _site(case, site, x, dy, dx, found["gradient"])
            found["y"].append((ys[first], y))
            first += 1
        found["dx"].append((dxs[group], dx))
    errors = {part: _error(pairs) for part, pairs in found.items() if pairs}
    bound = BOUNDS[case.base.dtype]
    if not all(error <= bound for error in errors.values()):
        raise WrongResult(f"{name} of {case.mix}: errors {errors}, not at most {bound}")
    return errors


def _site(
    case: LayerCase,
    site: int,
    x: Tensor,
    dy: Tensor,
    dx: Tensor,
    gradients: list[tuple[Tensor, Tensor]],
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


def _error(pairs: list[tuple[Tensor, Tensor]]) -> float:
    wrong = sum(float((found.double() - exact).square().sum()) for found, exact in pairs)
    return (wrong / sum(float(exact.square().sum()) for _, exact in pairs)) ** 0.5
