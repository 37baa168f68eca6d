"""Products with adapters inside: against float64, beside the plain ones, alone and in company."""

from collections.abc import Sequence

import pytest
import torch
from kernel_errors import check_errors
from lora_batches import (
    NAN,
    Batch,
    Tenant,
    Unit,
    exact_group,
    make_batch,
    one_group,
    projection,
    torch_group,
)
from torch import Tensor
from torch.nn import functional

from weft.kernels.gpu.gemm import input_gradient, linear
from weft.kernels.gpu.gemm_lora import input_gradient_lora, linear_lora
from weft.kernels.gpu.lora import shrink, shrink_gradient
from weft.kernels.layout import Layout

DTYPES = [torch.bfloat16, torch.float32]
ONE, TWO, THREE = (Tenant(rank, seed=rank) for rank in (3, 16, 48))
QKV = one_group(80, 144, 48, 48)
RAGGED = [(ONE, 5), (TWO, 70), (ONE, 1)]
BATCHES = [
    pytest.param(QKV, RAGGED, 80, id="ragged, one twice, some bare"),
    pytest.param(one_group(128, 256), RAGGED, 76, id="widths of whole blocks"),
    pytest.param(one_group(37, 75, 21), RAGGED, 76, id="odd widths"),
    pytest.param(QKV, [(None, 7), (Tenant(1, seed=7), 1), (TWO, 0)], 8, id="bare, rank 1, empty"),
    pytest.param(QKV, [(THREE, 6), (Tenant(128, seed=8), 9)], 15, id="high ranks"),
    pytest.param(QKV, [(None, 4)], 4, id="all bare"),
]


def weights_of(batch: Batch) -> list[Tensor]:
    """Frozen weights of the group."""
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(width, inputs, generator=generator) * inputs**-0.5).to(
            batch.device, batch.dtype
        )
        for inputs, width in batch.layout.shapes
    ]


def forward(
    batch: Batch, x: Tensor, weights: list[Tensor], bias: Tensor | None = None
) -> list[Tensor]:
    """Every linear of the group, the first with the bias."""
    s = shrink(x, batch.adapters, batch.sites)
    ys = []
    for index, weight in enumerate(weights):
        y, own = x.new_full((len(x), len(weight)), NAN), None if index else bias
        ys.append(linear_lora(x, weight, s, batch.adapters, batch.sites, index, y, bias=own))
    return ys


def backward(batch: Batch, dys: list[Tensor], weights: list[Tensor]) -> Tensor:
    """The gradient of the input, the adapters inside the last product."""
    ds = shrink_gradient(dys, batch.adapters, batch.sites)
    dx = dys[0].new_full((len(dys[0]), weights[0].shape[1]), NAN)
    for index, (dy, weight) in enumerate(zip(dys[:-1], weights[:-1], strict=True)):
        input_gradient(dy, weight, dx, accumulate=index > 0)
    return input_gradient_lora(
        dys[-1], weights[-1], ds, batch.adapters, batch.sites, dx, accumulate=len(dys) > 1
    )


def base_group(
    x: Tensor, dys: list[Tensor], weights: Sequence[Tensor], bias: Tensor
) -> list[Tensor]:
    """Outputs and the gradient of the input without adapters, by PyTorch."""
    ys = [functional.linear(x, weight, None if g else bias) for g, weight in enumerate(weights)]
    dx = dys[0] @ weights[0]
    for dy, weight in zip(dys[1:], weights[1:], strict=True):
        dx = dx + dy @ weight
    return [*ys, dx]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("layout", "units", "num_rows"), BATCHES)
def test_outputs_and_gradients_equal_the_oracle(
    device: torch.device, dtype: torch.dtype, layout: Layout, units: list[Unit], num_rows: int
) -> None:
    batch = make_batch(layout, units, device, dtype, num_rows=num_rows)
    weights, x = weights_of(batch), batch.rows(layout.shapes[0][0])
    dys = [batch.rows(width, salt) for salt, (_, width) in enumerate(layout.shapes, 1)]
    bias = torch.linspace(-1, 1, len(weights[0])).to(x)

    found = [*forward(batch, x, weights, bias), backward(batch, dys, weights)]

    base = base_group(x.cpu(), [dy.cpu() for dy in dys], [w.cpu() for w in weights], bias.cpu())
    exact_base = base_group(
        x.cpu().double(),
        [dy.cpu().double() for dy in dys],
        [weight.cpu().double() for weight in weights],
        bias.cpu().double(),
    )
    theirs, _ = torch_group(batch, x, [dy.cpu() for dy in dys])
    oracle = exact_group(batch, x, dys)
    plain = [a + b for a, b in zip(base, (*theirs.ys, theirs.dx), strict=True)]
    exact = [a + b for a, b in zip(exact_base, (*oracle.ys, oracle.dx), strict=True)]
    check_errors(found, plain, exact)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_rank_equals_the_oracle(device: torch.device, dtype: torch.dtype) -> None:
    batch = make_batch(one_group(32, 48), [(Tenant(200), 3)], device, dtype)
    weights, x = weights_of(batch), batch.rows(32)
    (y,) = forward(batch, x, weights)

    exact = x.cpu().double() @ weights[0].cpu().double().t()
    dys = [torch.zeros_like(y)]
    plain = functional.linear(x, weights[0]).cpu() + torch_group(batch, x, dys)[0].ys[0]
    check_errors([y], [plain], [exact + exact_group(batch, x, dys).ys[0]])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tile_rows", [16, 64, 128])
def test_adapters_of_zeros_leave_the_bits_of_the_plain_product(
    device: torch.device, dtype: torch.dtype, tile_rows: int
) -> None:
    units: list[Unit] = [(ONE, 90), (None, 9), (THREE, 70)]
    batch = make_batch(one_group(80, 144), units, device, dtype, tile_rows=tile_rows, num_rows=200)
    (weight,), x, dy = weights_of(batch), batch.rows(80), batch.rows(144)
    s = x.new_ones(batch.adapters.plan.s_elements)
    batch.adapters.weights.zero_()

    y = linear_lora(x, weight, s, batch.adapters, (0,), 0)
    dx = input_gradient_lora(dy, weight, s, batch.adapters, (0,))

    assert torch.equal(y, linear(x, weight))
    assert torch.equal(dx, input_gradient(dy, weight))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_without_adapter_have_the_bits_of_the_plain_product(
    device: torch.device, dtype: torch.dtype
) -> None:
    batch = make_batch(QKV, [(TWO, 9), (None, 30), (ONE, 4)], device, dtype, num_rows=50)
    weights, x = weights_of(batch), batch.rows(80)
    ys = forward(batch, x, weights)

    for y, weight in zip(ys, weights, strict=True):
        expected = linear(x, weight)
        for rows in (slice(9, 39), slice(43, 50)):
            assert torch.equal(y[rows], expected[rows])


@pytest.mark.parametrize(
    ("dtype", "tile_rows"), [(torch.bfloat16, 64), (torch.bfloat16, 128), (torch.float32, 64)]
)
def test_a_tenant_has_the_same_bits_alone_and_beside_others_that_are_not_numbers(
    device: torch.device, dtype: torch.dtype, tile_rows: int
) -> None:
    def run(units: list[Unit], place: int, tile_rows: int) -> tuple[list[Tensor], Tensor]:
        batch = make_batch(QKV, units, device, dtype, tile_rows=tile_rows)
        own = slice(place, place + 70)
        x, *dys = (batch.rows(width, width) for width in (80, 144, 48, 48))
        for tensor in (x, *dys):
            tensor[: own.start], tensor[own.stop :] = NAN, NAN
        weights = weights_of(batch)
        ys = forward(batch, x, weights)
        return [y[own] for y in ys], backward(batch, dys, weights)[own]

    ys, dx = run([(TWO, 70)], 0, 64)
    others, other_dx = run([(THREE, 3), (None, 62), (TWO, 70), (Tenant(9), 1)], 65, tile_rows)

    assert all(y.isfinite().all() for y in ys)
    assert all(torch.equal(a, b) for a, b in zip((*ys, dx), (*others, other_dx), strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_adapter_that_does_not_target_the_group_is_not_read(
    device: torch.device, dtype: torch.dtype
) -> None:
    layout = Layout(((80, 48), (48, 80)), ((0,), (1,)), (1, 2))
    other = Tenant(rank=16, mask=2, seed=9)
    batch = make_batch(layout, [(ONE, 3), (other, 5)], device, dtype)
    (weight, _), x = weights_of(batch), batch.rows(80)
    s = torch.full_like(shrink(x, batch.adapters, (0,)), NAN)
    projection(batch, s, 0, 0).fill_(1)

    y = linear_lora(x, weight, s, batch.adapters, (0,), 0)

    assert y.isfinite().all()
    assert torch.equal(y[3:], linear(x, weight)[3:])
    assert not torch.equal(y[:3], linear(x, weight)[:3])


def test_what_does_not_fit_the_plan_is_refused(device: torch.device) -> None:
    batch = make_batch(QKV, [(ONE, 3)], device)
    weights, x = weights_of(batch), batch.rows(80)
    s = shrink(x, batch.adapters, batch.sites)
    adapters, sites = batch.adapters, batch.sites

    with pytest.raises(ValueError, match=r"site 0 of the plan takes \(3, 144\)"):
        linear_lora(x, weights[1], s, adapters, sites, 0)
    with pytest.raises(ValueError, match=r"takes \(3, 144\), not \(2, 144\)"):
        linear_lora(x[:2], weights[0], s, adapters, sites, 0)
    with pytest.raises(ValueError, match=r"sites \(0, 2\) are not neighbours"):
        input_gradient_lora(x.new_zeros(3, 48), weights[2], s, adapters, (0, 2))
    with pytest.raises(ValueError, match="not 2 x 48"):
        input_gradient_lora(x.new_zeros(3, 48), weights[2], s, adapters, (1, 2))
    with pytest.raises(ValueError, match=r"s of torch.bfloat16"):
        linear_lora(x, weights[0], s.bfloat16(), adapters, sites, 0)
