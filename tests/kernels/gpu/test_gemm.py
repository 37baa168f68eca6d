"""Products with frozen weights against float64, and rows whose bits no other row changes."""

from collections.abc import Callable

import pytest
import torch
from kernel_errors import check_errors
from torch import Tensor

from weft.kernels.gpu.gemm import all_variants, input_gradient, linear
from weft.kernels.gpu.gemm_kernel import gemm_variant, is_even
from weft.kernels.gpu.shapes import PUBLISHED, ModelShape
from weft.kernels.gpu.variants import UnknownVariant, Variant
from weft.kernels.reference import lora_linear

DTYPES = [torch.bfloat16, torch.float32]
NAN = float("nan")
WIDTHS = [
    pytest.param(128, 256, id="whole blocks"),
    pytest.param(80, 144, id="parts of blocks"),
    pytest.param(37, 75, id="odd"),
]


def random(*shape: int, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(device, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("width", "outputs"), WIDTHS)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("accumulate", [False, True])
def test_outputs_and_gradients_equal_the_oracle(
    device: torch.device,
    dtype: torch.dtype,
    width: int,
    outputs: int,
    has_bias: bool,
    accumulate: bool,
) -> None:
    x, dy = (random(70, size, dtype=dtype, device=device) for size in (width, outputs))
    weight = random(outputs, width, dtype=dtype, device=device, seed=1) * width**-0.5
    bias = random(outputs, dtype=dtype, device=device, seed=2) if has_bias else None
    fill = 3.0 if accumulate else NAN
    y = linear(x, weight, torch.full_like(dy, fill), bias=bias, accumulate=accumulate)
    dx = input_gradient(dy, weight, torch.full_like(x, fill), accumulate=accumulate)

    leaf = x.cpu().double().requires_grad_()
    exact = lora_linear(leaf, weight.cpu(), None if bias is None else bias.cpu(), [], [])
    (exact_dx,) = torch.autograd.grad(exact, leaf, dy.cpu().double())
    old = 3.0 if accumulate else 0.0
    plain = torch.nn.functional.linear(x, weight, bias) + old, dy @ weight + old
    check_errors([y, dx], plain, [exact.detach() + old, exact_dx + old])


def bits_of_a_row(
    product: Callable[[Tensor, Tensor], Tensor], row: Tensor, weight: Tensor, rows: int, place: int
) -> Tensor:
    """What a row gives among rows that are not numbers."""
    x = row.new_full((rows, len(row)), NAN)
    x[place] = row
    return product(x, weight)[place]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("product", [linear, input_gradient])
def test_a_row_has_the_same_bits_among_any_number_of_rows_that_are_not_numbers(
    device: torch.device, dtype: torch.dtype, product: Callable[[Tensor, Tensor], Tensor]
) -> None:
    weight = random(200, 200, dtype=dtype, device=device)
    row = random(200, dtype=dtype, device=device, seed=1)
    # A large sum that vanishes at the end: what was rounded on the way is seen in bfloat16, too.
    weight[:, [0, -1]] = weight[[0, -1]] = 1.0
    row[0], row[-1] = 2.0**20, -(2.0**20)
    alone = product(row[None], weight)[0]

    assert alone.isfinite().all()
    for rows, place in [(7, 0), (7, 6), (64, 33), (65, 64), (200, 5), (200, 130), (200, 199)]:
        assert torch.equal(bits_of_a_row(product, row, weight, rows, place), alone)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_may_lie_apart_and_what_is_between_them_stays(
    device: torch.device, dtype: torch.dtype
) -> None:
    weight = random(48, 80, dtype=dtype, device=device)
    x = random(5, 3, 80, dtype=dtype, device=device, seed=1)
    wide = torch.full((5, 3, 48), NAN, dtype=dtype, device=device)

    y = linear(x[:, 1], weight, wide[:, 2])

    assert y.data_ptr() == wide[:, 2].data_ptr()
    assert torch.equal(y, linear(x[:, 1].contiguous(), weight))
    assert wide[:, :2].isnan().all()


def test_the_bias_is_added_before_the_only_rounding(device: torch.device) -> None:
    ones = torch.ones(1, 16, dtype=torch.bfloat16, device=device)
    bias = torch.full((1,), 2.0**-5, dtype=torch.bfloat16, device=device)
    weight = torch.full_like(ones, 1.0)
    weight[0, 0] = 1 - 2.0**-8  # the sum, 16 - 2^-8, would be rounded to 16

    y = linear(ones, weight, torch.full_like(bias[None], -16.0), bias=bias, accumulate=True)

    assert y.item() == 2.0**-5 - 2.0**-8


@pytest.mark.parametrize("product", [linear, input_gradient])
def test_rows_may_lie_beyond_two_billion_elements(
    device: torch.device, product: Callable[..., Tensor]
) -> None:
    weight = random(16, 16, dtype=torch.bfloat16, device=device)
    rows = random(260, 16, dtype=torch.bfloat16, device=device, seed=1)
    # Places that wrap around lie in the first half. On a CPU pages that nobody touches cost nothing.
    apart = torch.empty(520, 1 << 23, dtype=torch.bfloat16, device=device)[260:, :16]
    apart.copy_(rows)

    expected = product(rows, weight)

    assert torch.equal(product(apart, weight), expected)
    assert torch.equal(product(rows, weight, apart), expected)


def test_few_rows_are_computed_by_many_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    grids: list[tuple[int, ...]] = []
    monkeypatch.setattr(Variant, "launch", lambda self, grid, **_: grids.append(grid))
    weight = torch.zeros(4096, 64, dtype=torch.bfloat16)
    for rows in (1, 128, 129):
        linear(weight.new_zeros(rows, 64), weight)
    assert grids == [(64,), (2 * 64,), (2 * 16,)]


def test_no_rows_give_no_rows(device: torch.device) -> None:
    weight = random(48, 80, dtype=torch.float32, device=device)

    assert linear(weight.new_empty(0, 80), weight).shape == (0, 48)
    assert input_gradient(weight.new_empty(0, 48), weight).shape == (0, 80)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"x": torch.zeros(2, 81)}, "do not fit", id="widths"),
        pytest.param({"out": torch.zeros(3, 48)}, "do not fit", id="rows"),
        pytest.param({"x": torch.zeros(80, 2).t()}, "must be contiguous", id="columns apart"),
        pytest.param({"weight": torch.zeros(80, 48).t()}, "must be contiguous", id="weight"),
        pytest.param({"weight": torch.zeros(48, 80).bfloat16()}, "bfloat16 with rows", id="dtype"),
        pytest.param({"bias": torch.zeros(47)}, "a bias of 48", id="bias"),
        pytest.param({"accumulate": True}, "needs an out", id="nothing to add to"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, object], message: str) -> None:
    arguments = {"x": torch.zeros(2, 80), "weight": torch.zeros(48, 80)} | change
    x, weight = arguments.pop("x"), arguments.pop("weight")

    with pytest.raises(ValueError, match=message):
        linear(x, weight, **arguments)  # type: ignore[arg-type]


def test_an_unknown_form_is_refused_by_name() -> None:
    half = torch.zeros(2, 80).half(), torch.zeros(48, 80).half()

    with pytest.raises(UnknownVariant, match="float16"):
        linear(*half)
    with pytest.raises(UnknownVariant, match="tiles of 16 rows"):
        gemm_variant(torch.float32, 16, is_forward=True, is_even=(True, True))
    with pytest.raises(UnknownVariant, match="bucket 8"):
        gemm_variant(torch.float32, 128, is_forward=True, is_even=(True, True), bucket=8)


@pytest.mark.parametrize("shape", PUBLISHED, ids=lambda shape: shape.name)
def test_the_forms_of_published_models_are_few_and_among_those_that_are_checked(
    shape: ModelShape,
) -> None:
    checked = {variant.name: variant for variant in all_variants(shape)}
    for inputs, outputs in shape.groups:
        for width in outputs:
            even = is_even(torch.bfloat16, inputs, width)
            form = gemm_variant(torch.bfloat16, 128, is_forward=True, is_even=even, bucket=64)
            assert checked[form.name].constants == form.constants
            assert even[0]
            even = is_even(torch.bfloat16, inputs, width, is_narrow=True)
            form = gemm_variant(torch.bfloat16, 64, is_forward=True, is_even=even, is_narrow=True)
            assert checked[form.name].constants == form.constants
            assert all(even)
    assert len(checked) <= 140
