"""Outputs and input gradients of a group in both forms, by any base linears."""

from collections.abc import Callable

import interpreter
import pytest
import torch
from kernel_errors import check_errors
from lora_batches import Batch, Tenant, exact_group, make_batch, one_group
from torch import Tensor

from weft.engine.adapters.gpu_products import DeltaFirst, Inside, Products, choose_products
from weft.engine.model.gpu_linear import TritonLinear
from weft.engine.model.linear import BaseLinear, DenseLinear
from weft.kernels.gpu.lora import shrink, shrink_gradient

FORMS = [
    pytest.param(DeltaFirst(), DenseLinear, id="delta first, PyTorch"),
    pytest.param(DeltaFirst(), TritonLinear, id="delta first, our product"),
    pytest.param(Inside(), TritonLinear, id="inside"),
]
Base = Callable[[Tensor, Tensor | None], BaseLinear]


def run(
    products: Products, bases: list[BaseLinear], batch: Batch, x: Tensor, dys: list[Tensor | None]
) -> list[Tensor]:
    s = shrink(x, batch.adapters, batch.sites)
    ds = shrink_gradient(dys, batch.adapters, batch.sites)
    ys = products.forward(x, s, batch.adapters, bases, batch.sites)
    return [*ys, products.input_gradient(dys, ds, batch.adapters, bases, batch.sites)]


@pytest.mark.parametrize("missing", [(), (0,), (1, 2)], ids=["all", "no first", "first alone"])
@pytest.mark.parametrize(("products", "base"), FORMS)
def test_outputs_and_gradients_equal_the_oracle(
    products: Products, base: Base, missing: tuple[int, ...]
) -> None:
    device = interpreter.kernel_device()
    units = [(Tenant(3, seed=1), 5), (None, 2), (Tenant(16, seed=2), 9)]
    batch = make_batch(one_group(80, 144, 48, 48), units, device, num_rows=20)
    x = batch.rows(80)
    dys = [None if g in missing else batch.rows(w, g + 1) for g, w in enumerate((144, 48, 48))]
    weights = [batch.rows(80, 5 + g)[:1].expand(w, 80).clone() for g, w in enumerate((144, 48, 48))]
    bias = torch.linspace(-1, 1, 144, device=device)
    bases = [base(weight, bias if g == 0 else None) for g, weight in enumerate(weights)]

    found = run(products, bases, batch, x, dys)

    exact = exact_group(batch, x, dys)
    x64, w64 = x.cpu().double(), [weight.cpu().double() for weight in weights]
    base_ys = [x64 @ w.t() + (bias.cpu().double() if g == 0 else 0) for g, w in enumerate(w64)]
    ys = [a + b for a, b in zip(base_ys, exact.ys, strict=True)]
    dx = exact.dx + sum(
        dy.cpu().double() @ w for dy, w in zip(dys, w64, strict=True) if dy is not None
    )
    check_errors(found, found, [*ys, dx])


def test_inside_takes_our_own_linears_only() -> None:
    batch = make_batch(one_group(80, 48), [(Tenant(3), 2)], interpreter.kernel_device())
    base, x = DenseLinear(batch.rows(80)[:1].expand(48, 80).clone()), batch.rows(80)

    with pytest.raises(TypeError, match="not DenseLinear"):
        run(Inside(), [base], batch, x, [batch.rows(48)])


def test_adapters_go_inside_our_own_products_only() -> None:
    weight_OD = torch.zeros(4, 4)
    own, foreign = TritonLinear(weight_OD), DenseLinear(weight_OD)
    assert type(choose_products([own, own], inside=True)) is Inside
    assert type(choose_products([own, foreign], inside=True)) is DeltaFirst
    assert type(choose_products([own], inside=False)) is DeltaFirst
