"""RMSNorm and SwiGLU against plain formulas, and rows that depend on themselves alone."""

import pytest
import torch
from torch import Tensor

from weft.engine.model.layers import rms_norm, swiglu

DTYPES = [torch.float32, torch.bfloat16]
# float32: another order of sums; bfloat16: the result has 8 bits.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 5e-3}


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.detach().double() - expected.detach()).norm() / expected.detach().norm())


def plain_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(7, 48), (5, 3, 16), (1, 33)])
def test_rms_norm_and_its_gradient_follow_the_formula(
    dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    x, weight = random(*shape, dtype=dtype).requires_grad_(), random(shape[-1], dtype=dtype, seed=1)
    dy = random(*shape, dtype=dtype, seed=2)
    oracle = x.detach().double().requires_grad_()

    y = rms_norm(x, weight, 1e-2)
    expected = plain_norm(oracle, weight.double(), 1e-2)
    (dx,) = torch.autograd.grad(y, x, dy)
    (expected_dx,) = torch.autograd.grad(expected, oracle, dy.double())

    assert y.dtype == dtype
    assert error(y, expected) < TOLERANCE[dtype]
    assert error(dx, expected_dx) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("is_deterministic", [False, True])
@pytest.mark.parametrize("width", [48, 37])
def test_swiglu_and_its_gradients_follow_the_formula(
    dtype: torch.dtype, is_deterministic: bool, width: int
) -> None:
    gate, up, dy = (random(7, width, dtype=dtype, seed=seed) for seed in range(3))
    oracle_gate, oracle_up = (x.double().requires_grad_() for x in (gate, up))

    y = swiglu(gate.requires_grad_(), up.requires_grad_(), is_deterministic)
    expected = oracle_gate * oracle_gate.sigmoid() * oracle_up
    gradients = torch.autograd.grad(y, (gate, up), dy)
    oracles = torch.autograd.grad(expected, (oracle_gate, oracle_up), dy.double())

    assert error(y, expected) < TOLERANCE[dtype]
    assert error(gradients[0], oracles[0]) < TOLERANCE[dtype]
    assert error(gradients[1], oracles[1]) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_has_the_same_bits_among_other_rows_and_no_nan_of_theirs(dtype: torch.dtype) -> None:
    row, dy = random(1, 31, dtype=dtype), random(1, 31, dtype=dtype, seed=2)
    weight = random(31, dtype=dtype, seed=1)
    norm_alone, gate_alone = norm_bits(row, weight, dy), gate_bits(row, dy)

    for place in range(40):
        crowd = torch.full((40, 31), float("nan"), dtype=dtype)
        crowd_dy = crowd.clone()
        crowd[place], crowd_dy[place] = row, dy

        for bits, alone in [
            (norm_bits(crowd, weight, crowd_dy), norm_alone),
            (gate_bits(crowd, crowd_dy), gate_alone),
        ]:
            for found, expected in zip(bits, alone, strict=True):
                assert torch.equal(found[place], expected[0])


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_sixteen_rows_have_the_same_bits_whatever_share_a_thread_has(num_threads: int) -> None:
    rows, dy = random(16, 36), random(16, 36, seed=2)
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        alone = gate_bits(rows, dy)
        for repeats in range(290, 321):
            found = gate_bits(rows.repeat(repeats, 1), dy.repeat(repeats, 1))
            for a, b in zip(found, alone, strict=True):
                assert torch.equal(a, b.repeat(repeats, 1))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("is_deterministic", [False, True])
def test_swiglu_is_finite_at_both_ends(is_deterministic: bool) -> None:
    gate = torch.tensor([[-1e4, -200.0, 0.0, 200.0, 1e4]], requires_grad=True)
    up = torch.ones(1, 5, requires_grad=True)

    y = swiglu(gate, up, is_deterministic)
    dgate, dup = torch.autograd.grad(y, (gate, up), torch.ones_like(y))

    assert y.tolist() == [[0.0, 0.0, 0.0, 200.0, 1e4]]
    assert dgate.tolist() == [[0.0, 0.0, 0.5, 1.0, 1.0]]
    assert torch.equal(dup, y)


def norm_bits(x: Tensor, weight: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    y = rms_norm(x, weight, 1e-6)
    return y.detach(), torch.autograd.grad(y, x, dy)[0]


def gate_bits(gate: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
    gate, up = gate.clone().requires_grad_(), gate.flip(-1).requires_grad_()
    y = swiglu(gate, up, is_deterministic=True)
    return y.detach(), *torch.autograd.grad(y, (gate, up), dy)
