"""Batched products, and that those computed apart have the bits of each alone."""

import pytest
import torch
from thread_counts import threads
from torch import Tensor

from weft.kernels.products import ALIGNED, Batched, Products, Separate
from weft.kernels.workspace import Workspace

DTYPES = [torch.float32, torch.bfloat16]
# (X, Y, Z): one and two rows, more terms than a kernel sums at once, odd widths, small products.
SHAPES = [
    (1, 32, 97),
    (1, 8, 24),
    (2, 64, 100),
    (4, 20, 36),
    (7, 16, 40),
    (16, 300, 97),
    (48, 64, 24),
    (5, 8, 2100),
]
MANY = 9


@pytest.fixture(params=[Batched, Separate])
def products(request: pytest.FixtureRequest) -> Products:
    made: Products = request.param(Workspace("cpu"))
    return made


def operand(count: int, rows: int, width: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Random rows that are aligned."""
    step = -(-width // ALIGNED) * ALIGNED
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, rows, step, generator=generator).to(dtype)[:, :, :width]


def test_products_are_those_of_bmm_wherever_they_go(products: Products) -> None:
    left, right = operand(3, 5, 6, torch.float32), operand(3, 6, 7, torch.float32, seed=1)
    expected = torch.bmm(left, right)
    torch.testing.assert_close(products.multiply(left, right), expected)
    written = torch.full((3, 5, 7), float("nan"))
    products.write(written, left, right)
    torch.testing.assert_close(written, expected)
    products.add(written, left, right)
    torch.testing.assert_close(written, 2 * expected)
    spare = products.result(15, 7, torch.float32).view(3, 5, 7).fill_(float("nan"))
    products.write(spare, left, right)
    torch.testing.assert_close(spare, expected)


@pytest.mark.parametrize("num_rows", [1, 3])
def test_a_single_row_can_be_written_anywhere(products: Products, num_rows: int) -> None:
    left, right = operand(num_rows, 1, 6, torch.float32), operand(num_rows, 6, 7, torch.float32)
    written = torch.full((num_rows, 1, 7), float("nan"))
    products.write(written, left, right)
    torch.testing.assert_close(written, torch.bmm(left, right))


def every_product(left: Tensor, right: Tensor, before: int) -> list[Tensor]:
    """What each entry gets by each way, the sums in rows that start at some place of a tensor."""
    products = Separate(Workspace("cpu"))
    (count, rows, inner), width = left.shape, right.shape[2]
    whole = torch.ones(before + count * rows, width, dtype=left.dtype)
    sums = whole[before:].view(count, rows, width)
    products.add(sums, left, right)
    plane = torch.empty(count, inner, width, dtype=left.dtype)
    values = operand(count, rows, width, left.dtype)
    values.copy_(sums)
    products.write(plane, left.transpose(1, 2), values)
    padded = operand(count, inner, width, left.dtype)
    products.write(padded, left.transpose(1, 2), values)
    backward = products.multiply(values, right.transpose(1, 2))
    return [products.multiply(left, right), sums, plane, padded, backward]


@pytest.mark.parametrize("num_threads", [1, 2, 3, 8])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_separate_product_has_the_same_bits_in_any_company(
    shape: tuple[int, int, int], dtype: torch.dtype, num_threads: int
) -> None:
    rows, inner, width = shape
    left, right = operand(MANY, rows, inner, dtype), operand(MANY, inner, width, dtype, seed=1)
    with threads(num_threads):
        for count in (2, MANY):
            together = every_product(left[:count], right[:count], before=3)
            for entry in range(count):
                own = slice(entry, entry + 1)
                alone = every_product(left[own], right[own], before=0)
                for found, expected in zip(together, alone, strict=True):
                    assert torch.equal(found[own], expected)


def test_small_products_in_16_bits_do_not_depend_on_the_size_of_the_batch() -> None:
    # The two routines agree in most sums.
    left, right = operand(600, 4, 16, torch.bfloat16), operand(600, 16, 64, torch.bfloat16, seed=1)
    products = Separate(Workspace("cpu"))
    together = products.multiply(left, right)
    for entry in range(600):
        own = slice(entry, entry + 1)
        assert torch.equal(products.multiply(left[own], right[own]), together[own])


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_operand_that_lies_anywhere_is_aligned(dtype: torch.dtype) -> None:
    products = Separate(Workspace("cpu"))
    for width in (3, 16, 17, 32):
        x = torch.randn(1 + 2 * 5, width).to(dtype)[1:].view(2, 5, width)
        taken = products.as_operand("x", x)
        assert torch.equal(taken, x)
        assert taken.stride(0) % ALIGNED == 0
        assert (taken.data_ptr() == x.data_ptr()) == (width % ALIGNED == 0)


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("inner", "width"), [(8, 97), (16, 16), (64, 8), (512, 64), (16, 1536)])
def test_a_row_has_the_same_bits_in_any_number_of_tiles(
    inner: int, width: int, dtype: torch.dtype, num_threads: int
) -> None:
    products = Separate(Workspace("cpu"))
    right = operand(1, inner, width, dtype, seed=1)
    rows = operand(1, 256, inner, dtype)
    with threads(num_threads):
        many = products.multiply(rows, right)
        for first in range(0, 256 - 16, 37):
            few = operand(1, 16, inner, dtype)
            few.copy_(rows[:, first : first + 16])
            assert torch.equal(products.multiply(few, right), many[:, first : first + 16])


def test_small_rows_in_16_bits_do_not_depend_on_how_many_there_are() -> None:
    # The two routines agree in most sums.
    products = Separate(Workspace("cpu"))
    left, right = operand(300, 64, 16, torch.bfloat16), operand(300, 16, 16, torch.bfloat16, seed=1)
    few = operand(300, 16, 16, torch.bfloat16).copy_(left[:, :16])
    assert torch.equal(products.multiply(few, right), products.multiply(left, right)[:, :16])
