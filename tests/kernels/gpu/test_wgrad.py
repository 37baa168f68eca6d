"""Weight gradients: the tree of their sums, however it is scheduled, and where they go."""

import numpy as np
import pytest
import torch
from lora_batches import NAN, Batch, Tenant, make_batch, one_group

from weft.kernels.gpu import wgrad
from weft.kernels.gpu.lora import shrink, shrink_gradient, weight_gradients
from weft.kernels.gpu.tiles import CHUNK_ROWS, TilePlan, build_tiles
from weft.kernels.gpu.wgrad_planes import plane_count

LAYOUT = one_group(40, 136)
R3, R20 = Tenant(3, seed=3), Tenant(20, seed=20, is_fresh=False)
LONG = int(CHUNK_ROWS[1]) + 70


def add(batch: Batch) -> None:
    x, dy = batch.rows(40), batch.rows(136, 1)
    s = shrink(x, batch.adapters, [0])
    ds = shrink_gradient([dy], batch.adapters, [0])
    weight_gradients(x, [dy], s, ds, batch.adapters, [0])


def gradients(batch: Batch, *tenants: Tenant) -> list[torch.Tensor]:
    return [batch.gradient(tenant, 0, half) for tenant in tenants for half in (0, 1)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunks_apart_have_the_bits_of_chunks_together(
    device: torch.device, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    units = [(R3, 40), (R20, 6), (R3, LONG), (R20, 5), (R3, 7)]
    results = []
    for has_planes in (False, True):
        planes = {16: 4, 32: 2} if has_planes else {16: 0, 32: 0}
        monkeypatch.setattr(wgrad, "plane_count", lambda _, bucket, *__, p=planes: p[bucket])
        batch = make_batch(LAYOUT, units, device, dtype, unit_order=[2, 0, 1, 1, 0])
        add(batch)
        results.append(gradients(batch, R3, R20))
    for together, apart in zip(*results, strict=True):
        assert together.isfinite().all()
        assert torch.equal(together, apart)


@pytest.mark.parametrize("has_planes", [False, True])
def test_only_the_blocks_of_the_entries_are_written_and_fresh_padding_is_zero(
    device: torch.device, has_planes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wgrad, "plane_count", lambda *_: int(has_planes))
    batch = make_batch(LAYOUT, [(R3, 5), (R20, 4), (None, 2)], device)
    arena = batch.adapters.gradients
    assert arena is not None
    is_outside = arena.isnan()
    for view in (*batch.matrices(R3, arena)[0], *batch.matrices(R20, arena)[0]):
        is_outside.view(-1)[view.storage_offset() :][: view.numel()] = False
    add(batch)
    assert arena[is_outside].isnan().all()
    assert not arena[~is_outside].isnan().any()
    for tenant in (R3, R20):
        a, bt = batch.matrices(tenant, arena)[0]
        assert not a[:, 40:].any()
        assert not bt[:, 136:].any()


def test_a_second_batch_adds_to_the_first(device: torch.device) -> None:
    first = make_batch(LAYOUT, [(R3, 5), (R20, 4)], device)
    add(first)
    before = [x.clone() for x in gradients(first, R3, R20)]
    add(make_batch(LAYOUT, [(R20, 4), (R3, 5)], device, gradients=first))
    for doubled, once in zip(gradients(first, R3), before[:2], strict=True):
        assert torch.equal(doubled, 2 * once)
    assert not torch.equal(gradients(first, R20)[0], before[2])


def test_the_order_of_units_is_the_plans_and_not_that_of_rows(device: torch.device) -> None:
    rows = [3, 70, 9, 33]
    batch = make_batch(LAYOUT, [(R3, n) for n in rows], device)
    add(batch)
    orders = []
    for order in ([2, 1, 0], [0, 1, 2]):
        turned = make_batch(LAYOUT, [(R3, n) for n in rows[::-1]], device, unit_order=[3, *order])
        add(turned)
        orders.append(gradients(turned, R3))
    assert all(map(torch.equal, orders[0], gradients(batch, R3)))
    assert not all(map(torch.equal, orders[1], gradients(batch, R3)))


def test_entries_without_gradients_are_not_touched(device: torch.device) -> None:
    batch = make_batch(LAYOUT, [(R3, 5), (None, 4)], device)
    assert batch.adapters.gradients is not None
    batch.adapters.gradients.fill_(NAN)
    empty = make_batch(LAYOUT, [(None, 9)], device, gradients=batch)
    add(empty)
    assert batch.adapters.gradients.isnan().all()


def plan_of(rows: list[int], runs: list[int]) -> TilePlan:
    many = len(rows)
    return build_tiles(
        np.array(rows),
        num_rows=sum(rows),
        starts=[0] * many,
        ranks=[8] * many,
        masks=[1] * many,
        scales=[1.0] * many,
        gradients=runs,
    )


@pytest.mark.parametrize(
    ("rows", "runs", "num_blocks", "count"),
    [
        pytest.param([2048] * 8, [0] * 8, 32, 16, id="one tenant"),
        pytest.param([1024] * 16, [*range(16)], 32, 0, id="many equal tenants"),
        pytest.param([900] * 15 + [60] * 9, [0] * 15 + [*range(1, 10)], 96, 24, id="skewed"),
        pytest.param([9000] + [60] * 9, [*range(10)], 32, 18, id="one long unit"),
        pytest.param([2048] * 8, [0] * 8, 300, 0, id="wide"),
        pytest.param([1000], [0], 8, 0, id="one chunk"),
    ],
)
def test_chunks_are_apart_where_one_entry_would_keep_few_programs_busy(
    rows: list[int], runs: list[int], num_blocks: int, count: int
) -> None:
    assert plane_count(plan_of(rows, runs), 16, num_blocks, 1 << 18) == count
    assert plane_count(plan_of(rows, runs), 16, num_blocks, 1 << 30) == 0
