"""Packed attention: every sequence sees itself alone, whatever stands beside it."""

import numpy as np
import pytest
import torch
from lora_helpers import CountOps
from torch import Tensor

from weft.engine.model.attention import PackedAttention, length_class

HEADS, KV_HEADS, HEAD_DIM = 6, 2, 16
SHAPES = (HEADS, KV_HEADS, KV_HEADS)
LENGTHS = [5, 1, 0, 33, 1, 130, 16, 0]


def bounds(lengths: list[int]) -> list[int]:
    return [0, *np.cumsum(lengths).tolist()]


def random_rows(num_rows: int, seed: int = 0) -> list[Tensor]:
    """Rows of q, k, v and of the gradient of the output."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(num_rows, heads, HEAD_DIM, generator=generator) for heads in (*SHAPES, HEADS)
    ]


def run(lengths: list[int], tensors: list[Tensor]) -> tuple[Tensor, ...]:
    """Output and the gradients of q, k and v."""
    q, k, v = (x.clone().requires_grad_() for x in tensors[:3])
    out = PackedAttention(bounds(lengths)).attend(0, q, k, v)
    return out.detach(), *torch.autograd.grad(out, (q, k, v), tensors[3])


def one_sequence(q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor) -> Tensor:
    """The textbook form in float64."""
    repeats = q_THK.shape[1] // k_TGK.shape[1]
    k_THK, v_THK = (x.repeat_interleave(repeats, 1) for x in (k_TGK, v_TGK))
    scores = torch.einsum("thk,shk->hts", q_THK, k_THK) / q_THK.shape[-1] ** 0.5
    future = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
    weights = scores.masked_fill(future, float("-inf")).softmax(-1)
    return torch.einsum("hts,shk->thk", weights, v_THK)


@pytest.mark.parametrize(
    "lengths",
    [
        pytest.param(LENGTHS, id="mixed"),
        pytest.param([12, 12], id="equal"),
        pytest.param([300], id="long"),
        pytest.param([1, 1, 1], id="one token each"),
        pytest.param([0, 9], id="empty first"),
    ],
)
def test_output_and_gradients_are_those_of_each_sequence_alone(lengths: list[int]) -> None:
    tensors = random_rows(sum(lengths))

    found = run(lengths, tensors)

    start = 0
    for length in lengths:
        rows = slice(start, start := start + length)
        q, k, v = (x[rows].double().requires_grad_() for x in tensors[:3])
        out = one_sequence(q, k, v)
        expected = (out.detach(), *torch.autograd.grad(out, (q, k, v), tensors[3][rows].double()))
        for actual, wanted in zip(found, expected, strict=True):
            # Float32 sums in another order.
            torch.testing.assert_close(actual[rows].double(), wanted, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("length", [1, 5, 16, 50, 200, 300])
def test_a_sequence_has_the_same_bits_among_others_and_no_nan_of_theirs(length: int) -> None:
    tensors = random_rows(length)
    alone = run([length], tensors)

    for before, after in [([3], []), ([length, 7], [1, length]), ([1] * 9, [64, 0, 300])]:
        lengths = [*before, length, *after]
        rows = slice(sum(before), sum(before) + length)
        crowd = [torch.full((sum(lengths), *x.shape[1:]), float("nan")) for x in tensors]
        for x, own in zip(crowd, tensors, strict=True):
            x[rows] = own
        for found, expected in zip(run(lengths, crowd), alone, strict=True):
            assert torch.equal(found[rows], expected)


def test_rows_beyond_the_last_bound_give_and_get_nothing() -> None:
    tensors = random_rows(24)
    for x in tensors:
        x[20:] = float("nan")

    found = run([13, 7], tensors)

    for x in found:
        assert x[:20].isfinite().all()
        assert torch.equal(x[20:], torch.zeros_like(x[20:]))


@pytest.mark.parametrize("num_rows", [0, 16])
def test_a_batch_without_tokens_gives_zeros(num_rows: int) -> None:
    q, k, v, _ = random_rows(num_rows)

    out = PackedAttention([0, 0, 0]).attend(0, q, k, v)

    assert torch.equal(out, torch.zeros_like(q))


def test_the_number_of_operations_follows_the_length_classes_alone() -> None:
    def operations(lengths: list[int]) -> dict[str, int]:
        with CountOps() as counter:
            run(lengths, random_rows(sum(lengths)))
        return dict(counter.counts)

    assert operations([40, 41, 20, 19]) == operations([39, 40, 37, 48] * 8 + [20, 19] * 8)


def test_length_classes_waste_less_than_half_an_octave() -> None:
    lengths = np.arange(1, 5000)

    classes = length_class(lengths)

    assert (classes >= lengths).all()
    assert (classes[:16] == [1, 2, 3, 4, 6, 6, 8, 8, 12, 12, 12, 12, 16, 16, 16, 16]).all()
    assert (classes <= 1.5 * lengths).all()
    assert (classes[256:] <= 1.13 * lengths[256:]).all()
    assert len(np.unique(classes)) < 55


@pytest.mark.parametrize("cu_seqlens", [[], [1, 2], [0, 3, 2], [[0, 1]]])
def test_bounds_that_are_none_are_refused(cu_seqlens: list[int]) -> None:
    with pytest.raises(ValueError, match="cu_seqlens"):
        PackedAttention(cu_seqlens)
