"""Rows of a block, and the products on them."""

import pytest
import torch

from weft.kernels.lora import (
    Rows,
    add_weight_gradient,
    shrink,
    shrink_gradient,
    weight_gradient,
)
from weft.kernels.plan import Block, build_plan
from weft.kernels.products import Batched, Products, Separate
from weft.kernels.workspace import Workspace


def blocks_of(counts: list[int]) -> list[Block]:
    return list(build_plan(counts, [4] * len(counts), [1] * len(counts)).blocks)


@pytest.fixture(params=[Batched, Separate])
def products(request: pytest.FixtureRequest) -> Products:
    made: Products = request.param(Workspace("cpu"))
    return made


def test_whole_adjacent_rows_are_a_view(products: Products) -> None:
    x_TD = torch.randn(12, 16)
    rows = Rows(blocks_of([6, 6])[0], 12, torch.device("cpu"), products)
    assert rows.is_view
    gathered = rows.gather(x_TD, "x")
    assert gathered.shape == (2, 6, 16)
    assert gathered.data_ptr() == x_TD.data_ptr()


def test_padding_is_zero_and_goes_nowhere(products: Products) -> None:
    x_TD = torch.randn(12, 3)
    rows = Rows(blocks_of([5, 7])[0], 12, torch.device("cpu"), products)
    products.operand("x", 64, 3, torch.float32).fill_(float("nan"))
    gathered = rows.gather(x_TD, "x")
    assert torch.equal(gathered[0, :5], x_TD[:5])
    assert torch.equal(gathered[1, :7], x_TD[5:])
    assert not gathered[0, 5:].any()
    assert not gathered[1, 7:].any()
    y_TO = torch.zeros(13, 2)
    left = torch.ones(2, 8, 1)
    rows.add_product(y_TO, left, torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]]))
    assert torch.equal(y_TO[:5], torch.tensor([1.0, 2.0]).expand(5, 2))
    assert torch.equal(y_TO[5:12], torch.tensor([3.0, 4.0]).expand(7, 2))


def test_padding_is_zero_whatever_the_first_row_holds(products: Products) -> None:
    x_TD = torch.full((12, 3), float("nan"))
    rows = Rows(blocks_of([5, 7])[0], 12, torch.device("cpu"), products)
    gathered = rows.gather(x_TD, "x")
    assert not gathered[0, 5:].any()
    assert not gathered[1, 7:].any()


@pytest.mark.parametrize(("rank", "rows"), [(8, 1), (8, 2), (64, 16), (256, 8)])
@pytest.mark.parametrize("width", [96, 97])
def test_separate_products_do_not_depend_on_where_rows_lie(
    rank: int, rows: int, width: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(rows, size, generator=generator) for size in (40, width))
    a, bt = (torch.randn(1, rank, size, generator=generator) for size in (48, 112))
    a, bt = a[:, :, :40], bt[:, :, :width]
    products = Separate(Workspace("cpu"))

    def last_segment(counts: list[int], ranks: list[int]) -> torch.Tensor:
        """Shrink and expand of the segment at the end, in a batch with others of its kind."""
        plan = build_plan(counts, ranks, [1] * len(counts), is_deterministic=True)
        block = next(block for block in plan.blocks if block.length >= rows)
        others, many = sum(counts[:-1]), block.num_entries
        x_TD, y_TO = torch.ones(others + rows, 40), torch.ones(others + rows + 1, width)
        x_TD[others:], y_TO[others : others + rows] = x, y
        place = Rows(block, len(x_TD), torch.device("cpu"), products)
        weights = [each.expand(many, -1, -1) for each in (a, bt)]
        s = shrink(place.gather(x_TD, "x"), weights[0], torch.full((many,), 0.5), products)
        place.add_product(y_TO, s, weights[1])
        return y_TO[others : others + rows]

    alone = last_segment([rows], [rank])
    assert not torch.equal(alone, y)
    for counts, ranks in [([rows] * 3, [rank] * 3), ([rows, 1, rows], [rank, 0, rank])]:
        assert torch.equal(last_segment(counts, ranks), alone)


@pytest.mark.parametrize("is_missing", [False, True])
def test_gradients_of_a_group_are_those_of_autograd(products: Products, is_missing: bool) -> None:
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    x, a = randn(2, 5, 6), randn(2, 8, 6).requires_grad_()
    bts = [randn(2, 4, 7).requires_grad_() for _ in range(2)]
    scale = torch.tensor([0.5, 3.0])
    dys = [randn(2, 5, 7) for _ in range(2)]
    s = (x @ a.transpose(1, 2)) * scale[:, None, None]
    ys = [s[:, :, :4] @ bts[0], s[:, :, 4:] @ bts[1]]
    torch.autograd.backward(ys[is_missing:], dys[is_missing:])
    found_s = shrink(x, a.detach(), scale, products)
    torch.testing.assert_close(found_s, s.detach())
    given: list[torch.Tensor | None] = [None, dys[1]] if is_missing else list(dys)
    ds = shrink_gradient(given, [bt.detach() for bt in bts], scale, products)
    plane = torch.full((2, 8, 6), float("nan"))
    weight_gradient(plane, ds, x, products)
    torch.testing.assert_close(plane, a.grad)
    add_weight_gradient(plane, ds, x, products)
    assert a.grad is not None
    torch.testing.assert_close(plane, 2 * a.grad)
