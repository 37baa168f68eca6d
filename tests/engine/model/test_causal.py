"""Causal attention of one length against the textbook form, over every block size."""

import pytest
import torch
from thread_counts import threads
from torch import Tensor

from weft.engine.model.causal import attend_causal

DTYPES = [torch.float32, torch.bfloat16]
# bfloat16 rounds scores, probabilities and their gradients to 8 bits.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2}


def textbook(q_CMK: Tensor, k_CLK: Tensor, v_CLK: Tensor) -> Tensor:
    """Loop over key heads and query heads in float64."""
    repeats, length = q_CMK.shape[1] // k_CLK.shape[1], k_CLK.shape[1]
    out_CMK = torch.zeros_like(q_CMK)
    for head in range(len(q_CMK)):
        for repeat in range(repeats):
            rows = slice(repeat, None, repeats)
            scores = q_CMK[head, rows] @ k_CLK[head].T / q_CMK.shape[-1] ** 0.5
            future = torch.ones(length, length, dtype=torch.bool).triu(1)
            weights = scores.masked_fill(future, float("-inf")).softmax(-1)
            out_CMK[head, rows] = weights @ v_CLK[head]
    return out_CMK


def random_heads(
    num_heads: int, length: int, repeats: int, head_dim: int, dtype: torch.dtype
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)
    rows = (length * repeats, length, length, length * repeats)  # q, k, v and the gradient
    return [torch.randn(num_heads, n, head_dim, generator=generator).to(dtype) for n in rows]


def run(q: Tensor, k: Tensor, v: Tensor, dout: Tensor) -> tuple[Tensor, ...]:
    q, k, v = (x.clone().requires_grad_() for x in (q, k, v))
    out = attend_causal(q, k, v)
    return out.detach(), *torch.autograd.grad(out, (q, k, v), dout)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("length", "repeats", "head_dim"),
    [
        pytest.param(1, 1, 8, id="one token"),
        pytest.param(7, 3, 8, id="one block"),
        pytest.param(65, 2, 16, id="a block and a token"),
        pytest.param(192, 2, 80, id="large products"),
        pytest.param(300, 2, 64, id="probabilities computed again"),
    ],
)
def test_values_and_gradients_are_those_of_the_textbook(
    length: int, repeats: int, head_dim: int, dtype: torch.dtype
) -> None:
    q, k, v, dout = random_heads(3, length, repeats, head_dim, dtype)
    oracle = [x.double().requires_grad_() for x in (q, k, v)]

    found = run(q, k, v, dout)
    expected = textbook(*oracle)
    gradients = torch.autograd.grad(expected, oracle, dout.double())

    for actual, wanted in zip(found, (expected.detach(), *gradients), strict=True):
        scale = max(float(wanted.norm()), 1.0)  # one token has no gradient of q and k
        assert float((actual.double() - wanted).norm()) / scale < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [1, 12, 64, 96, 192, 320])
def test_a_head_has_the_same_bits_among_others_and_no_nan_of_theirs(
    length: int, dtype: torch.dtype
) -> None:
    tensors = random_heads(2, length, 2, 64, dtype)
    alone = run(*tensors)

    for before, after in [(0, 1), (3, 0), (7, 14)]:
        nan = float("nan")
        crowd = [
            torch.cat(
                [x.new_full((before, *x.shape[1:]), nan), x, x.new_full((after, *x.shape[1:]), nan)]
            )
            for x in tensors
        ]
        for found, expected in zip(run(*crowd), alone, strict=True):
            assert torch.equal(found[before : before + 2], expected)


@pytest.mark.parametrize("num_threads", [2, 3, 8])
@pytest.mark.parametrize("repeats", [1, 4, 7])
@pytest.mark.parametrize("length", [1, 3, 6, 12, 24, 70, 140])
def test_one_head_alone_has_the_bits_that_it_has_among_others(
    length: int, repeats: int, num_threads: int
) -> None:
    tensors = random_heads(3, length, repeats, 20, torch.float32)
    with threads(num_threads):
        together = run(*tensors)
        for head in range(3):
            alone = run(*(x[head : head + 1] for x in tensors))
            for found, expected in zip(together, alone, strict=True):
                assert torch.equal(found[head], expected[0])
