"""Frozen linears: values, writing in place, rows whose bits do not depend on other rows."""

import pytest
import torch
from thread_counts import threads
from torch import Tensor

from weft.engine.model.linear import DenseLinear, FrozenLinears

DTYPES = [torch.float32, torch.bfloat16]
# Sums of 80 products in another order; bfloat16 keeps 8 bits.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def is_near(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    """Compare by root mean square, relative to the expected values."""
    error = (actual.double() - expected).norm() / expected.norm()
    return bool(error < TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row_tile", [0, 16, 64])
@pytest.mark.parametrize("accumulate", [False, True])
def test_products_are_written_or_added(dtype: torch.dtype, row_tile: int, accumulate: bool) -> None:
    weight, bias = random(48, 80, dtype=dtype), random(48, dtype=dtype, seed=1)
    x, dy = random(96, 80, dtype=dtype, seed=2), random(96, 48, dtype=dtype, seed=3)
    linear = DenseLinear(weight, bias, row_tile)
    old_y, old_dx = (torch.full_like(like, 3.0) for like in (dy, x))

    y = linear.forward(x, old_y, accumulate)
    dx = linear.backward_input(dy, old_dx, accumulate)

    base = 3.0 if accumulate else 0.0
    assert y is old_y
    assert dx is old_dx
    assert is_near(y, base + x.double() @ weight.double().T + bias.double(), dtype)
    assert is_near(dx, base + dy.double() @ weight.double(), dtype)


def test_old_contents_of_out_do_not_matter() -> None:
    linear, x = DenseLinear(random(48, 80)), random(5, 80, seed=1)

    y = linear.forward(x, torch.full((5, 48), float("nan")))

    assert torch.equal(y, linear.forward(x))


def test_wide_outputs_and_strided_targets_are_filled() -> None:
    linear, x = DenseLinear(random(5000, 16)), random(3, 16, seed=1)
    wide = torch.zeros(3, 2, 5000)

    linear.forward(x, wide[:, 1])

    assert is_near(wide[:, 1], x.double() @ linear.weight_OD.double().T, torch.float32)
    assert not wide[:, 0].any()


@pytest.mark.parametrize("num_rows", [0, 1])
def test_no_rows_and_one_row_work(num_rows: int) -> None:
    linear = DenseLinear(random(48, 80))

    assert linear.forward(random(num_rows, 80)).shape == (num_rows, 48)
    assert linear.backward_input(random(num_rows, 48)).shape == (num_rows, 80)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("width", "outputs"), [(64, 96), (512, 192), (1536, 64)])
def test_tiled_rows_have_the_same_bits_wherever_they_stand(
    dtype: torch.dtype, width: int, outputs: int
) -> None:
    linear = DenseLinear(random(outputs, width, dtype=dtype), row_tile=64)
    x, dy = random(16, width, dtype=dtype, seed=1), random(16, outputs, dtype=dtype, seed=2)
    alone, alone_dx = linear.forward(x), linear.backward_input(dy)

    for num_rows, start in [(32, 3), (64, 48), (80, 64), (208, 57), (256, 100)]:
        others, other_dy = random(num_rows, width, seed=3), random(num_rows, outputs, seed=4)
        crowd, crowd_dy = others.to(dtype), other_dy.to(dtype)
        crowd[start : start + 16], crowd_dy[start : start + 16] = x, dy

        assert torch.equal(linear.forward(crowd)[start : start + 16], alone)
        assert torch.equal(linear.backward_input(crowd_dy)[start : start + 16], alone_dx)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_threads", [1, 3])
def test_tiled_rows_with_a_bias_have_the_same_bits_wherever_they_go(
    dtype: torch.dtype, num_threads: int
) -> None:
    bias = random(97, dtype=dtype, seed=2)
    linear = DenseLinear(random(97, 64, dtype=dtype), bias, row_tile=64)
    rows = random(160, 64, dtype=dtype, seed=1)
    with threads(num_threads):
        alone = linear.forward(rows[:16])
        assert torch.equal(linear.forward(rows)[:16], alone)
        spare = torch.empty(17, 97, dtype=dtype)
        linear.forward(rows[:16], spare[:-1])
        assert torch.equal(spare[:-1], alone)


def test_tiles_need_rows_in_sixteens() -> None:
    with pytest.raises(ValueError, match="17 rows"):
        DenseLinear(random(48, 80), row_tile=64).forward(random(17, 80))
    with pytest.raises(ValueError, match="row_tile is 24"):
        DenseLinear(random(48, 80), row_tile=24)


def test_nothing_can_be_added_to_nothing() -> None:
    with pytest.raises(ValueError, match="out"):
        DenseLinear(random(48, 80)).forward(random(2, 80), accumulate=True)


def test_a_frozen_group_gives_the_gradient_of_its_input_alone() -> None:
    weights = random(48, 80), random(16, 80, seed=1)
    x = random(6, 80, seed=2).requires_grad_()
    bases = tuple(DenseLinear(weight.requires_grad_()) for weight in weights)
    dys = random(6, 48, seed=3), random(6, 16, seed=4)

    outputs = FrozenLinears().group(x, bases, (0, 1))
    dx, *others = torch.autograd.grad(outputs, (x, *weights), dys, allow_unused=True)

    expected = sum(dy.double() @ weight.double() for dy, weight in zip(dys, weights, strict=True))
    assert isinstance(expected, Tensor)
    assert is_near(dx, expected.detach(), torch.float32)
    assert others == [None, None]


def test_an_unused_output_of_a_group_is_no_gradient() -> None:
    x, weight = random(6, 80).requires_grad_(), random(48, 80, seed=1)
    bases = DenseLinear(weight), DenseLinear(torch.full((16, 80), float("nan")))

    used, _ = FrozenLinears().group(x, bases, (0, 1))
    (dx,) = torch.autograd.grad(used.sum(), x)

    assert dx.isfinite().all()
