"""Attention of which no bit depends on the other queries, keys and sequences of a call."""

import numpy as np
import pytest
import torch
from thread_counts import threads
from torch import Tensor

from weft.engine.model.attention import PackedAttention
from weft.engine.model.exact_attention import attend_exactly, padded

G, R, K = 2, 3, 16
DTYPES = [torch.float32, torch.bfloat16]
LENGTH = 300


def sequence(length: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """q [L, H, K], k and v [L, G, K] of one sequence."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(length, heads, K, generator=generator) for heads in (G * R, G, G))
    return q.to(dtype), k.to(dtype), v.to(dtype)


def trained(parts: list[tuple[Tensor, Tensor, Tensor]]) -> list[Tensor]:
    """What training gives sequences that are packed into one batch."""
    lengths = [len(q) for q, _, _ in parts]
    attention = PackedAttention(np.cumsum([0, *lengths]), is_deterministic=True)
    q, k, v = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return list(torch.split(attention.attend(0, q, k, v), lengths))


def decoded(part: tuple[Tensor, Tensor, Tensor], first: int, count: int, company: int) -> Tensor:
    """Rows first .. first + count - 1 over keys in pages, beside other sequences."""
    parts = [sequence(len(part[0]), part[0].dtype, seed) for seed in range(1, 1 + company)]
    parts.insert(company // 2, part)
    keys = padded(first + count + 20)
    last_NQ = np.tile(np.arange(first, first + count), (company + 1, 1))
    is_later = torch.from_numpy(np.arange(keys) > last_NQ[:, :, None])
    k, v = (torch.zeros(company + 1, G, keys, K, dtype=part[0].dtype) for _ in range(2))
    for place, (_, own_k, own_v) in enumerate(parts):
        k[place, :, : first + count] = own_k[: first + count].transpose(0, 1)
        v[place, :, : first + count] = own_v[: first + count].transpose(0, 1)
    q = torch.stack([own_q[first : first + count] for own_q, _, _ in parts])
    return attend_exactly(q, k, v, last_NQ, is_later)[company // 2]


@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_decode_and_prefill_in_any_chunks_give_the_bits_of_training(
    dtype: torch.dtype, num_threads: int
) -> None:
    part = sequence(LENGTH, dtype)
    with threads(num_threads):
        (whole,) = trained([part])
        for first in (0, 1, 15, 16, 17, 63, 64, 100, 127, 128, 129, 255, 256, LENGTH - 1):
            for count, company in ((1, 0), (1, 5), (5, 2), (140, 1)):
                stop = min(first + count, LENGTH)
                rows = decoded(part, first, stop - first, company)
                assert torch.equal(rows, whole[first:stop]), (first, count, company)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_prefix_has_the_bits_that_it_has_in_longer_sequences(dtype: torch.dtype) -> None:
    part = sequence(LENGTH, dtype)
    (whole,) = trained([part])
    lengths = (1, 2, 15, 16, 17, 31, 48, 64, 65, 100, 128, 129, 200, 256, 257)
    prefixes = [(part[0][:n], part[1][:n], part[2][:n]) for n in lengths]
    for length, found in zip(lengths, trained(prefixes), strict=True):
        assert torch.equal(found, whole[:length]), length


def test_values_and_gradients_are_those_of_free_mode() -> None:
    parts = [sequence(length, torch.float32, length) for length in (1, 17, 64, 130, LENGTH)]
    q, k, v = (torch.cat(tensors).requires_grad_() for tensors in zip(*parts, strict=True))
    bounds = np.cumsum([0, *(len(part[0]) for part in parts)])
    weights = torch.randn(q.shape, generator=torch.Generator().manual_seed(1))
    found = []
    for is_deterministic in (False, True):
        out = PackedAttention(bounds, is_deterministic=is_deterministic).attend(0, q, k, v)
        found.append((out, *torch.autograd.grad((out * weights).sum(), (q, k, v))))
    for free, exact in zip(*found, strict=True):
        # Sums of at most 300 terms of size 1, in another order.
        torch.testing.assert_close(exact, free, rtol=1e-5, atol=1e-5)


def test_nan_of_another_sequence_stays_there() -> None:
    part, other = sequence(40, torch.float32), sequence(33, torch.float32, 1)
    other[1].fill_(float("nan"))
    (alone,), (beside, _) = trained([part]), trained([part, other])
    assert torch.equal(alone, beside)


def test_sums_over_many_keys_keep_the_precision_of_16_bits() -> None:
    part = sequence(2000, torch.bfloat16)
    (found,) = trained([part])
    q, k, v = (x.double().transpose(0, 1) for x in part)
    k, v = (x.repeat_interleave(R, 0) for x in (k, v))
    exact = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    late = slice(1000, None)
    error = found.double()[late] - exact.transpose(0, 1)[late]
    # Scores, weights and results are rounded to 8 bits each; sums in 16 bits would double it.
    assert (error.norm() / exact.transpose(0, 1)[late].norm()).item() < 0.006
