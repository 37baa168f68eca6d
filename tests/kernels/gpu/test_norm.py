"""RMSNorm with and without the addition before it: values, gradients, bits, and lone NaN."""

import pytest
import torch
from kernel_errors import check_errors
from torch import Tensor

from weft.engine.model.pieces import TorchPieces
from weft.kernels.gpu import norm
from weft.kernels.gpu.shapes import PUBLISHED, ModelShape
from weft.kernels.gpu.variants import UnknownVariant, Variant
from weft.kernels.reference import rms_norm as exact_norm

EPS = 1e-5
TYPES = [torch.float32, torch.bfloat16]
SHAPES = [(5, 256), (3, 37), (2, 96), (1, 7), (0, 64)]
PIECES = TorchPieces()

pytestmark = pytest.mark.usefixtures("fresh_memory_is_nan")


def random(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def inputs(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """x, delta, weight, dy, dsum."""
    shapes = [shape, shape, shape[1:], shape, shape]
    return [random(*own, dtype=dtype, seed=i).to(device) for i, own in enumerate(shapes)]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_norm_and_its_gradient_equal_the_oracle(
    shape: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> None:
    x, _, weight, dy, _ = inputs(shape, dtype, device)
    leaf, exact = x.clone().requires_grad_(), x.double().requires_grad_()

    y, rstd = norm.rms_norm(x, weight, EPS)
    found = [y, norm.rms_norm_backward(dy, x, weight, rstd)]

    _, plain_y = PIECES.add_rms_norm(leaf, None, weight, EPS)
    exact_y = exact_norm(exact, weight, EPS)
    plain = [plain_y, *torch.autograd.grad(plain_y, leaf, dy)]
    check_errors(found, plain, [exact_y, *torch.autograd.grad(exact_y, exact, dy.double())])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_sum_its_norm_and_the_gradient_of_both_equal_the_oracle(
    shape: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> None:
    x, delta, weight, dy, dsum = inputs(shape, dtype, device)
    leaf, exact = delta.clone().requires_grad_(), delta.double().requires_grad_()

    total, y, rstd = norm.add_rms_norm(x, delta, weight, EPS)
    found = [total, y, norm.rms_norm_backward(dy, total, weight, rstd, dsum)]

    plain = list(PIECES.add_rms_norm(x, leaf, weight, EPS))
    plain += torch.autograd.grad(plain, leaf, [dsum, dy])
    exact_sum = x.double() + exact
    oracle = [exact_sum, exact_norm(exact_sum, weight, EPS)]
    oracle += torch.autograd.grad(oracle, exact, [dsum.double(), dy.double()])
    check_errors(found, plain, oracle)


@pytest.mark.parametrize("dtype", TYPES)
def test_the_product_is_rounded_before_the_weights_and_after(
    dtype: torch.dtype, device: torch.device
) -> None:
    x, _, weight, _, _ = inputs((5, 200), dtype, device)
    y, rstd = norm.rms_norm(x, weight, EPS)
    assert torch.equal(y, (x * rstd[:, None]).to(dtype) * weight)


@pytest.mark.parametrize("dtype", TYPES)
def test_the_addition_in_the_same_pass_changes_no_bit(
    dtype: torch.dtype, device: torch.device
) -> None:
    x, delta, weight, _, _ = inputs((5, 200), dtype, device)
    total, y, rstd = norm.add_rms_norm(x, delta, weight, EPS)
    assert torch.equal(total, x + delta)
    for found, expected in zip((y, rstd), norm.rms_norm(x + delta, weight, EPS), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("place", [0, 3, 6])
def test_a_row_among_nan_has_the_bits_that_it_has_alone(
    place: int, dtype: torch.dtype, device: torch.device
) -> None:
    x, delta, weight, dy, dsum = inputs((1, 72), dtype, device)
    crowds = [torch.full_like(row, float("nan")).repeat(7, 1) for row in (x, delta, dy, dsum)]
    for crowd, row in zip(crowds, (x, delta, dy, dsum), strict=True):
        crowd[place] = row

    total, y, rstd = norm.add_rms_norm(x, delta, weight, EPS)
    alone = [total, y, rstd, norm.rms_norm_backward(dy, total, weight, rstd, dsum)]
    xs, deltas, dys, dsums = crowds
    sums, ys, rstds = norm.add_rms_norm(xs, deltas, weight, EPS)
    among = [sums, ys, rstds, norm.rms_norm_backward(dys, sums, weight, rstds, dsums)]

    for found, expected in zip(among, alone, strict=True):
        assert torch.equal(found[place], expected[0])
        assert found.isnan().flatten(1).all(1).sum() == 6 if found.ndim > 1 else True


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        pytest.param((1, 8193), torch.bfloat16, "rms_norm bf16 width 8193", id="too wide"),
        pytest.param((1, 64), torch.float16, "float16", id="another type"),
    ],
)
def test_what_was_not_compiled_is_named(
    shape: tuple[int, int], dtype: torch.dtype, message: str, device: torch.device
) -> None:
    x, _, weight, _, _ = inputs(shape, dtype, device)
    with pytest.raises(UnknownVariant, match=message):
        norm.rms_norm(x, weight, EPS)


def test_rows_with_gaps_are_refused(device: torch.device) -> None:
    wide = torch.zeros(4, 64, device=device)
    with pytest.raises(ValueError, match="contiguous"):
        norm.rms_norm(wide[:, :32], wide[0, :32], EPS)


@pytest.mark.parametrize(
    "weight",
    [
        pytest.param(torch.zeros(32, dtype=torch.bfloat16), id="type"),
        pytest.param(torch.zeros(31), id="width"),
    ],
)
def test_weights_of_another_type_or_width_are_refused(weight: Tensor, device: torch.device) -> None:
    with pytest.raises(ValueError, match="beside"):
        norm.rms_norm(torch.zeros(4, 32, device=device), weight.to(device), EPS)


@pytest.mark.parametrize("shape", PUBLISHED, ids=lambda shape: shape.name)
def test_what_published_models_launch_is_enumerated(
    shape: ModelShape, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[Variant] = []
    monkeypatch.setattr(Variant, "launch", lambda self, grid, **_: launched.append(self))
    row = torch.zeros(1, shape.width, dtype=torch.bfloat16)
    total, y, rstd = norm.add_rms_norm(row, row, row[0], EPS)
    norm.rms_norm(row, row[0], EPS)
    norm.rms_norm_backward(y, total, row[0], rstd, y)
    norm.rms_norm_backward(y, total, row[0], rstd)
    assert set(launched) <= set(norm.all_variants(shape))
    assert len(set(launched)) == 4
