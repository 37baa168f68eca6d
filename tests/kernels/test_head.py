"""Log-probabilities in the logits' memory."""

import pytest
import torch

from weft.kernels.head import (
    many_target_logprobs_,
    pair_logprobs_,
    subtract_one_hot_,
    subtract_soft_targets_,
    target_logprobs_,
)
from weft.kernels.reference import soft_target_loss, target_logprobs


@pytest.mark.parametrize("scale", [1.0, 30.0, 1000.0])
def test_logprobs_and_gradient_equal_the_oracle(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits_TV = torch.randn(9, 333, generator=generator) * scale
    targets_T = torch.randint(0, 333, (9,), generator=generator)
    leaf = logits_TV.double().requires_grad_()
    expected = target_logprobs(leaf, targets_T)
    (gradient,) = torch.autograd.grad(expected.sum(), leaf)
    logprobs = target_logprobs_(logits_TV, targets_T)
    # float32 logits of size `scale` are known to 6e-8 of it
    torch.testing.assert_close(logprobs.double(), expected.detach(), rtol=1e-6, atol=3e-7 * scale)
    found = -subtract_one_hot_(logits_TV, targets_T)
    torch.testing.assert_close(found.double(), gradient, rtol=1e-5, atol=3e-7 * scale)


def test_any_pairs_have_the_bits_of_one_target_a_row() -> None:
    logits_TV = 30 * torch.randn(4, 333, generator=torch.Generator().manual_seed(0))
    rows, targets = torch.tensor([2, 0, 2, 3]), torch.tensor([332, 5, 5, 0])
    alone = [
        target_logprobs_(logits_TV[row : row + 1].clone(), targets[index : index + 1])
        for index, row in enumerate(rows.tolist())
    ]
    assert torch.equal(pair_logprobs_(logits_TV.clone(), rows, targets), torch.cat(alone))


def test_a_target_whose_probability_underflows_keeps_its_logprob() -> None:
    logits_CV = torch.tensor([[0.0, -500.0, 3.0]])
    assert float(target_logprobs_(logits_CV, torch.tensor([1]))) == pytest.approx(
        -503.0486, rel=1e-6
    )


def test_a_non_finite_row_leaves_the_others() -> None:
    logits_CV = torch.randn(3, 20, generator=torch.Generator().manual_seed(0))
    spoiled = logits_CV.clone()
    spoiled[1, 4] = float("nan")
    targets_C = torch.tensor([1, 2, 3])
    clean, other = (target_logprobs_(logits, targets_C) for logits in (logits_CV, spoiled))
    assert torch.equal(clean[::2], other[::2])
    assert torch.isnan(other[1])


@pytest.mark.parametrize("scale", [1.0, 30.0, 1000.0])
def test_rows_with_several_targets_equal_the_oracle_and_leave_the_others_their_bits(
    scale: float,
) -> None:
    generator = torch.Generator().manual_seed(1)
    logits_CV = torch.randn(6, 333, generator=generator) * scale
    targets_C = torch.tensor([5, 0, 9, 0, 0, 332])
    several = {1: [(3, 0.5), (7, -0.25)], 3: [(0, 2.0)], 4: [(1, 1.0), (2, -1.0), (332, 0.5)]}
    pairs = [(row, *pair) for row, listed in several.items() for pair in listed]
    rows_P, pulled_P = (torch.tensor([pair[index] for pair in pairs]) for index in (0, 1))
    weights_P = torch.tensor([weight for *_, weight in pairs])
    one_hots_C, totals_C = torch.full((6,), -1.0), torch.ones(6)
    for row, listed in several.items():
        one_hots_C[row], totals_C[row] = 0, sum(weight for _, weight in listed)
    leaf = logits_CV.double().requires_grad_()
    loss = soft_target_loss(leaf, [several.get(row, []) for row in range(6)])
    (gradient,) = torch.autograd.grad(loss, leaf)
    alone = logits_CV.clone()
    expected_C, shares_CV = target_logprobs_(alone, targets_C), alone
    logprobs_C, logprobs_P = many_target_logprobs_(logits_CV, targets_C, rows_P, pulled_P)
    assert torch.equal(logprobs_C, expected_C)
    exact = leaf.detach().log_softmax(1)[rows_P, pulled_P]
    torch.testing.assert_close(logprobs_P.double(), exact, rtol=1e-6, atol=3e-7 * scale)
    found = subtract_soft_targets_(
        logits_CV, targets_C, one_hots_C, totals_C, (rows_P, pulled_P, weights_P)
    )
    single = [row for row in range(6) if row not in several]
    assert torch.equal(found[single], subtract_one_hot_(shares_CV, targets_C)[single])
    chosen = list(several)
    torch.testing.assert_close(
        found[chosen].double(), gradient[chosen], rtol=1e-5, atol=3e-7 * scale
    )
