"""Log-probabilities in the logits' memory."""

import pytest
import torch

from weft.kernels.head import subtract_one_hot_, target_logprobs_
from weft.kernels.reference import target_logprobs


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
