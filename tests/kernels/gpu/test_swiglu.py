"""SwiGLU: values, gradients, views, both ends, bits, and lone NaN."""

import pytest
import torch
from kernel_errors import check_errors
from torch import Tensor

from weft.engine.model.pieces import TorchPieces
from weft.kernels import reference
from weft.kernels.gpu import swiglu
from weft.kernels.gpu.shapes import PUBLISHED, ModelShape
from weft.kernels.gpu.variants import UnknownVariant, Variant

TYPES = [torch.float32, torch.bfloat16]
SHAPES = [(4, 64), (3, 37), (2, 1500), (1, 16), (0, 64)]  # 1500: two programs a row

pytestmark = pytest.mark.usefixtures("fresh_memory_is_nan")


def inputs(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """dy, gate and up: columns of one tensor."""
    rows, width = shape
    wide = 2 * torch.randn(rows, 3 * width, generator=torch.Generator().manual_seed(width))
    return list(torch.split(wide.to(dtype).to(device), width, dim=1))


def found_by_kernel(dy: Tensor, gate: Tensor, up: Tensor) -> list[Tensor]:
    return [swiglu.swiglu(gate, up), *swiglu.swiglu_backward(dy, gate, up)]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_product_and_its_gradients_equal_the_oracle(
    shape: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> None:
    dy, gate, up = inputs(shape, dtype, device)
    leaves = [x.clone().requires_grad_() for x in (gate, up)]
    exact_leaves = [x.double().requires_grad_() for x in (gate, up)]

    y, exact = TorchPieces().swiglu(*leaves), reference.swiglu(*exact_leaves)

    plain = [y, *torch.autograd.grad(y, leaves, dy)]
    oracle = [exact, *torch.autograd.grad(exact, exact_leaves, dy.double())]
    check_errors(found_by_kernel(dy, gate, up), plain, oracle)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("place", [0, 2])
def test_a_row_of_its_own_among_nan_has_the_same_bits(
    place: int, dtype: torch.dtype, device: torch.device
) -> None:
    parts = inputs((3, 96), dtype, device)
    alone = found_by_kernel(*(x[place : place + 1].clone() for x in parts))
    others = [row for row in range(3) if row != place]
    for x in parts:
        x[others] = float("nan")

    for found, expected in zip(found_by_kernel(*parts), alone, strict=True):
        assert torch.equal(found[place], expected[0])
        assert found[others].isnan().all()


@pytest.mark.parametrize("dtype", TYPES)
def test_both_ends_are_finite(dtype: torch.dtype, device: torch.device) -> None:
    gate = torch.tensor([[-10240.0, -200.0, 0.0, 200.0, 10240.0]], dtype=dtype, device=device)
    ones = torch.ones_like(gate)
    y, dgate, dup = found_by_kernel(ones, gate, ones)
    assert y.tolist() == [[0.0, 0.0, 0.0, 200.0, 10240.0]]
    assert dgate.tolist() == [[0.0, 0.0, 0.5, 1.0, 1.0]]
    assert torch.equal(dup, y)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_what_was_not_compiled_is_named(dtype: torch.dtype, device: torch.device) -> None:
    _, gate, up = inputs((1, 16), dtype, device)
    with pytest.raises(UnknownVariant, match="float"):
        swiglu.swiglu(gate, up)


def test_columns_with_gaps_are_refused(device: torch.device) -> None:
    _, gate, up = inputs((2, 32), torch.float32, device)
    with pytest.raises(ValueError, match="strides"):
        swiglu.swiglu(gate[:, ::2], up[:, :16])


def test_rows_of_another_type_or_number_are_refused(device: torch.device) -> None:
    _, gate, up = inputs((2, 32), torch.float32, device)
    for other in (up.bfloat16(), up[:1]):
        with pytest.raises(ValueError, match="beside"):
            swiglu.swiglu(gate, other)


@pytest.mark.parametrize("shape", PUBLISHED, ids=lambda shape: shape.name)
def test_what_published_models_launch_is_enumerated(
    shape: ModelShape, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[Variant] = []
    monkeypatch.setattr(Variant, "launch", lambda self, grid, **_: launched.append(self))
    found_by_kernel(*inputs((2, shape.ffn_width), torch.bfloat16, torch.device("cpu")))
    assert set(launched) <= set(swiglu.all_variants(shape))
    assert len(set(launched)) == 2
