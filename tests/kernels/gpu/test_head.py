"""Log-probabilities and gradients of a chunk of logits against the float64 oracle."""

import pytest
import torch
from torch import Tensor

from weft.kernels.gpu.head import (
    Pulls,
    all_variants,
    pair_logprobs,
    row_bounds,
    rows_gradient_,
    rows_logprobs,
)
from weft.kernels.gpu.shapes import PUBLISHED
from weft.kernels.gpu.variants import UnknownVariant
from weft.kernels.head import logprobs
from weft.kernels.reference import capped, soft_target_loss, target_logprobs

TYPES = [torch.float32, torch.bfloat16]
WIDTHS = [3, 100, 256, 9001]  # of the vocabulary; the last has several blocks and no vectors
ROWS = 5

pytestmark = pytest.mark.usefixtures("fresh_memory_is_nan")


def random_chunk(
    vocab_size: int, dtype: torch.dtype, device: torch.device, scale: float = 3.0
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(vocab_size)
    logits_CV = scale * torch.randn(ROWS, vocab_size, generator=generator)
    targets_C = torch.randint(0, vocab_size, (ROWS,), generator=generator)
    targets_C[0], targets_C[-1] = 0, vocab_size - 1
    return logits_CV.to(dtype).to(device), targets_C.to(device)


def exact_gradient(loss: Tensor, leaf: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(loss, leaf)
    return gradient


def check_gradient(
    found: Tensor, expected: Tensor, scale: float = 3.0, sizes_C: Tensor | None = None
) -> None:
    """Rounded once to its type; float32 logits of size `scale` are known to 6e-8 of it.

    `sizes_C` are those of the rows' coefficients.
    """
    relative = 2**-8 if found.dtype == torch.bfloat16 else 1e-5
    found = found.double()
    if sizes_C is not None:
        found, expected = found / sizes_C[:, None], expected / sizes_C[:, None]
    torch.testing.assert_close(found, expected, rtol=relative, atol=3e-7 * scale)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("vocab_size", WIDTHS)
@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_logprobs_and_gradient_equal_the_oracle(
    vocab_size: int, dtype: torch.dtype, softcap: float, device: torch.device
) -> None:
    logits_CV, targets_C = random_chunk(vocab_size, dtype, device)
    coefficients_C = torch.tensor([1.5, -0.5, 0.0, 1e-3, 700.0], device=device)
    leaf = logits_CV.double().requires_grad_()
    expected_C = target_logprobs(capped(leaf, softcap), targets_C)
    gradient_CV = exact_gradient(-(coefficients_C * expected_C).sum(), leaf)
    logprobs_C, norms_C2 = rows_logprobs(logits_CV, targets_C, softcap=softcap)
    torch.testing.assert_close(logprobs_C.double(), expected_C.detach(), rtol=1e-6, atol=1e-6)
    found = rows_gradient_(
        logits_CV, targets_C, norms_C2, coefficients_C, coefficients_C, softcap=softcap
    )
    assert found is logits_CV
    check_gradient(found, gradient_CV, sizes_C=coefficients_C.double().abs().clamp(min=1e-3))


@pytest.mark.parametrize("scale", [30.0, 1000.0])
def test_large_logits_keep_their_accuracy(scale: float, device: torch.device) -> None:
    logits_CV, targets_C = random_chunk(333, torch.float32, device, scale)
    leaf = logits_CV.double().requires_grad_()
    expected_C = target_logprobs(leaf, targets_C)
    gradient_CV = exact_gradient(-expected_C.sum(), leaf)
    logprobs_C, norms_C2 = rows_logprobs(logits_CV, targets_C)
    torch.testing.assert_close(
        logprobs_C.double(), expected_C.detach(), rtol=1e-6, atol=3e-7 * scale
    )
    ones_C = torch.ones(ROWS, device=device)
    found = rows_gradient_(logits_CV, targets_C, norms_C2, ones_C, ones_C)
    check_gradient(found, gradient_CV, scale)


def test_a_target_whose_probability_underflows_keeps_its_logprob(device: torch.device) -> None:
    logits_CV = torch.tensor([[0.0, -500.0, 3.0], [-700.0, 0.0, 3.0]], device=device)
    logprobs_C, _ = rows_logprobs(logits_CV, torch.tensor([1, 0], device=device))
    assert logprobs_C.tolist() == pytest.approx([-503.0486, -703.0486], rel=1e-6)


@pytest.mark.parametrize("dtype", TYPES)
def test_tokens_that_cannot_be_have_no_probability(
    dtype: torch.dtype, device: torch.device
) -> None:
    logits_CV, targets_C = random_chunk(9001, dtype, device)
    logits_CV[:, 1:-1] = -float("inf")  # whole lanes never see a number
    expected_C = target_logprobs(logits_CV, targets_C)
    ones_C = torch.ones(ROWS, device=device)
    logprobs_C, norms_C2 = rows_logprobs(logits_CV, targets_C)
    torch.testing.assert_close(logprobs_C.double(), expected_C, rtol=1e-6, atol=1e-6)
    gradient_CV = rows_gradient_(logits_CV, targets_C, norms_C2, ones_C, ones_C)
    assert gradient_CV.isfinite().all()
    assert not gradient_CV[[0, -1], 1:-1].any()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_bits_of_a_row_do_not_depend_on_the_others(
    dtype: torch.dtype, softcap: float, device: torch.device
) -> None:
    logits_CV, targets_C = random_chunk(300, dtype, device)
    order = torch.tensor([3, 1, 4, 0, 2], device=device)

    def run(rows: Tensor) -> tuple[Tensor, Tensor]:
        own_CV, own_C = logits_CV[rows].contiguous(), targets_C[rows]
        logprobs_C, norms_C2 = rows_logprobs(own_CV, own_C, softcap=softcap)
        ones_C = torch.ones(len(rows), device=device)
        gradient_CV = rows_gradient_(own_CV, own_C, norms_C2, ones_C, ones_C, softcap=softcap)
        return logprobs_C, gradient_CV

    among, shuffled, alone = run(torch.arange(ROWS, device=device)), run(order), run(order[:1])
    for one, other, own in zip(among, shuffled, alone, strict=True):
        assert torch.equal(one[order], other)
        assert torch.equal(other[:1], own)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_non_finite_row_is_alone_with_it(poison: float, device: torch.device) -> None:
    clean_CV, targets_C = random_chunk(300, torch.bfloat16, device)
    spoiled_CV = clean_CV.clone()
    spoiled_CV[1, 44] = poison
    ones_C = torch.ones(ROWS, device=device)
    (clean_C, norms_C2), (other_C, others_C2) = (
        rows_logprobs(logits_CV, targets_C) for logits_CV in (clean_CV, spoiled_CV)
    )
    good = [0, 2, 3, 4]
    assert torch.equal(clean_C[good], other_C[good])
    assert not other_C[1].isfinite()
    rows_gradient_(clean_CV, targets_C, norms_C2, ones_C, ones_C)
    rows_gradient_(spoiled_CV, targets_C, others_C2, ones_C, ones_C)
    assert torch.equal(clean_CV[good], spoiled_CV[good])
    assert spoiled_CV[1].isnan().any()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_any_pairs_have_the_bits_of_one_target_a_row(
    dtype: torch.dtype, softcap: float, device: torch.device
) -> None:
    logits_CV, targets_C = random_chunk(300, dtype, device)
    logprobs_C, norms_C2 = rows_logprobs(logits_CV, targets_C, softcap=softcap)
    rows_M = torch.arange(ROWS, device=device).repeat(40)  # more than one program takes
    pairs_M = pair_logprobs(logits_CV, norms_C2, rows_M, targets_C[rows_M], softcap=softcap)
    assert torch.equal(pairs_M, logprobs_C[rows_M])


def test_widened_logits_have_the_bits_of_the_narrow_ones(device: torch.device) -> None:
    logits_CV = torch.randn(40, 5000, generator=torch.Generator().manual_seed(0))
    logits_CV[:, 0] = 10  # of most of the probability: a logarithm that shows every bit of its sum
    logits_CV, targets_C = logits_CV.bfloat16().to(device), torch.arange(40, device=device)
    logprobs_C, _ = rows_logprobs(logits_CV, targets_C)
    wide_CV = logits_CV.float()
    chosen_C = wide_CV.gather(1, targets_C[:, None]).squeeze(1)
    assert torch.equal(logprobs(chosen_C, *row_bounds(wide_CV)), logprobs_C)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_rows_with_several_targets_equal_the_oracle(
    dtype: torch.dtype, softcap: float, device: torch.device
) -> None:
    logits_CV, targets_C = random_chunk(300, dtype, device)
    several = {1: [(3, 0.5), (7, -0.25)], 2: [(0, 2.0)], 3: [(1, 1.0), (2, -1.0), (299, 0.5)]}
    pairs = [(row, *pair) for row, listed in several.items() for pair in listed]
    columns = [torch.tensor(column, device=device) for column in zip(*pairs, strict=True)]
    pushes_C, pulls_C = torch.ones(ROWS, device=device), torch.ones(ROWS, device=device)
    for row, listed in several.items():
        pushes_C[row], pulls_C[row] = sum(weight for _, weight in listed), 0
    leaf = logits_CV.double().requires_grad_()
    bent = capped(leaf, softcap)
    loss = soft_target_loss(bent, [several.get(row, []) for row in range(ROWS)])
    loss = loss - target_logprobs(bent, targets_C)[[0, 4]].sum()
    expected_CV = exact_gradient(loss, leaf)
    _, norms_C2 = rows_logprobs(logits_CV, targets_C, softcap=softcap)
    found = rows_gradient_(
        logits_CV, targets_C, norms_C2, pushes_C, pulls_C, softcap=softcap, further=Pulls(*columns)
    )
    check_gradient(found, expected_CV)


def test_a_probability_that_its_weight_all_but_cancels_is_rounded_once(
    device: torch.device,
) -> None:
    logits_CV = torch.zeros(1, 2, dtype=torch.bfloat16, device=device)
    targets_C, rows_M = torch.zeros(2, 1, dtype=torch.int64, device=device)
    _, norms_C2 = rows_logprobs(logits_CV, targets_C)
    pulls = Pulls(rows_M, targets_C, torch.tensor([0.4999], device=device))
    ones_C = torch.ones(1, device=device)
    rows_gradient_(logits_CV, targets_C, norms_C2, ones_C, torch.zeros_like(ones_C), further=pulls)
    assert float(logits_CV[0, 0]) == pytest.approx(1e-4, rel=2**-8)


def test_a_chunk_without_rows_is_nothing(device: torch.device) -> None:
    logits_CV, targets_C = random_chunk(100, torch.float32, device)
    logprobs_C, norms_C2 = rows_logprobs(logits_CV[:0], targets_C[:0])
    none_C = torch.empty(0, device=device)
    assert len(logprobs_C) == 0
    assert len(rows_gradient_(logits_CV[:0], targets_C[:0], norms_C2, none_C, none_C)) == 0


def test_logits_of_an_unknown_type_are_refused_by_name(device: torch.device) -> None:
    logits_CV = torch.zeros(1, 16, dtype=torch.float16, device=device)
    with pytest.raises(UnknownVariant, match="float16"):
        rows_logprobs(logits_CV, torch.zeros(1, dtype=torch.int64, device=device))


def test_columns_of_a_larger_tensor_are_refused(device: torch.device) -> None:
    logits_CV, targets_C = random_chunk(100, torch.float32, device)
    with pytest.raises(ValueError, match="contiguous"):
        rows_logprobs(logits_CV[:, :64], targets_C)


def test_variants_of_a_model_have_names_of_their_own() -> None:
    names = [variant.name for variant in all_variants(PUBLISHED[0])]
    assert len(names) == len(set(names)) == 16
