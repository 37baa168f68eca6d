"""Linears with adapters against the oracle, and what a neighbour may not do."""

from itertools import pairwise

import pytest
import torch
from lora_helpers import (
    GROUPS,
    SITES,
    CountOps,
    adapter_of,
    check_against_oracle,
    gradient_matrices,
    inputs,
    make_bases,
    make_run,
    make_store,
    rms_error,
    run_group,
)
from torch import Tensor

from weft.engine.adapters.lora import LoraLinears
from weft.engine.adapters.store import Run
from weft.engine.adapters.targets import LAYERS, Targets
from weft.engine.model.config import linear_name
from weft.engine.model.linear import DenseLinear
from weft.kernels.reference import lora_linear


@pytest.mark.parametrize("is_deterministic", [False, True])
@pytest.mark.parametrize("sites", GROUPS, ids=lambda sites: SITES[sites[0]].module)
def test_mixed_ranks_ragged_units_and_bare_rows_equal_the_oracle(
    sites: tuple[int, ...], is_deterministic: bool
) -> None:
    store = make_store()
    runs = [make_run(store, rank, seed=rank) for rank in (1, 4, 7, 16, 64)]
    lengths = [5, 16, 0, 1, 33]
    units: list[tuple[Run | None, int]] = list(zip(runs, lengths, strict=True))
    units += [(None, 9), (runs[1], 12), (runs[4], 33)]
    check_against_oracle(store, sites, units, 3, is_deterministic)


@pytest.mark.parametrize(
    "lengths",
    [
        pytest.param([8, 8, 8], id="adjacent whole units"),
        pytest.param([1], id="one row"),
        pytest.param([0], id="no row"),
        pytest.param([700], id="longer than any class"),
        pytest.param([17, 31, 32], id="padded"),
    ],
)
def test_units_of_one_run_equal_the_oracle(lengths: list[int]) -> None:
    store = make_store()
    run = make_run(store, 5)
    check_against_oracle(store, (4, 5), [(run, length) for length in lengths], spare_rows=2)


def test_targets_that_differ_share_a_batch() -> None:
    store = make_store()
    runs = [make_run(store, 8, seed=mask, mask=mask) for mask in (1, 2, 3, 4, 5, 7)]
    for sites in GROUPS:
        check_against_oracle(store, sites, [(run, 8) for run in runs])


def test_a_group_whose_output_is_unused_gives_zeros() -> None:
    store = make_store()
    run = make_run(store, 4)
    x_TD, dys_TO = inputs(6, (0, 1, 2))
    store.begin(run)
    linears = LoraLinears(store, [run.version], [run], [6])
    ys = linears.group(x_TD, make_bases((0, 1, 2)), (0, 1, 2))
    linears.group(x_TD, make_bases((4, 5)), (4, 5))
    torch.autograd.backward(ys[0], dys_TO[0])
    linears.flush()
    store.commit(run)
    gradients = gradient_matrices(store, run)
    assert gradients[f"{linear_name(0, 'q')}.lora_b"].any()
    for name in ("k.lora_a", "k.lora_b", "v.lora_b", "gate.lora_a", "o.lora_b"):
        module, half = name.split(".")
        assert not gradients[f"{linear_name(0, module)}.{half}"].any()


def test_an_input_without_gradient_still_trains_the_adapter() -> None:
    store = make_store()
    run = make_run(store, 4)
    x_TD, (dy_TO,) = inputs(6, (3,))
    store.begin(run)
    linears = LoraLinears(store, [run.version], [run], [6])
    (y,) = linears.group(x_TD, make_bases((3,)), (3,))
    torch.autograd.backward(y, dy_TO)
    linears.flush()
    store.commit(run)
    assert gradient_matrices(store, run)[f"{linear_name(0, 'o')}.lora_b"].any()


def test_without_runs_nothing_asks_for_a_gradient() -> None:
    store = make_store()
    run = make_run(store, 4)
    x_TD, _ = inputs(6, (3,))
    (y,) = LoraLinears(store, [run.version], [None], [6]).group(x_TD, make_bases((3,)), (3,))
    assert not y.requires_grad


@pytest.mark.parametrize("sites", GROUPS, ids=lambda sites: SITES[sites[0]].module)
@pytest.mark.parametrize("lengths", [(8, 8, 8), (9, 12, 10)], ids=["views", "padded"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_neighbours_non_finite_rows_never_reach_others(
    sites: tuple[int, ...], lengths: tuple[int, ...], poison: float
) -> None:
    store = make_store()
    runs = [make_run(store, rank, seed=rank) for rank in (5, 6, 8)]
    units: list[tuple[Run | None, int]] = list(zip(runs, lengths, strict=True))
    units.append((None, 4))
    x_TD, dys_TO = inputs(sum(lengths) + 4, sites)
    clean = run_group(store, sites, units, x_TD, dys_TO)
    clean_gradients = [gradient_matrices(store, run) for run in runs]
    bad = slice(lengths[0], lengths[0] + lengths[1])
    for tensor in (x_TD, *dys_TO):
        tensor[bad] = poison
    for run in runs:
        run.has_gradient = False
    spoiled = run_group(store, sites, units, x_TD, dys_TO)
    good = torch.ones(len(x_TD), dtype=torch.bool)
    good[bad] = False
    for before, after in zip((*clean.ys, clean.dx), (*spoiled.ys, spoiled.dx), strict=True):
        assert torch.equal(before[good], after[good])
    for index in (0, 2):
        matrices = gradient_matrices(store, runs[index])
        kept = clean_gradients[index]
        assert all(torch.equal(kept[name], matrices[name]) for name in kept)


def test_a_neighbours_non_finite_weights_never_reach_others() -> None:
    store = make_store()
    runs = [make_run(store, rank, seed=rank) for rank in (5, 6)]
    units: list[tuple[Run | None, int]] = [(runs[0], 9), (runs[1], 12), (None, 3)]
    x_TD, dys_TO = inputs(24, (4, 5))
    clean = run_group(store, (4, 5), units, x_TD, dys_TO)
    before = gradient_matrices(store, runs[0])
    store.version_flat(runs[1].version).fill_(float("nan"))
    runs[0].has_gradient = runs[1].has_gradient = False
    spoiled = run_group(store, (4, 5), units, x_TD, dys_TO)
    assert torch.equal(clean.ys[0][:9], spoiled.ys[0][:9])
    assert torch.equal(clean.dx[21:], spoiled.dx[21:])
    after = gradient_matrices(store, runs[0])
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("rows", [1, 15, 16, 19, 64, 100, 520])
@pytest.mark.parametrize("sites", GROUPS, ids=lambda sites: SITES[sites[0]].module)
def test_deterministic_bits_do_not_depend_on_neighbours(sites: tuple[int, ...], rows: int) -> None:
    store = make_store()
    run = make_run(store, 7, seed=1)
    others = [make_run(store, rank, seed=rank) for rank in (8, 5, 16)]
    x_TD, dys_TO = inputs(1600, sites)

    def compute(
        before: int, units: list[tuple[Run | None, int]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        total = -(-sum(count for _, count in units) // 16) * 16
        first = 200 - before
        window = slice(first, first + total)
        for one in (run, *others):
            one.has_gradient = False
        result = run_group(store, sites, units, x_TD[window], [dy[window] for dy in dys_TO], True)
        own = slice(before, before + rows)
        matrices = gradient_matrices(store, run)
        return [y[own] for y in (*result.ys, result.dx)], list(matrices.values())

    alone = compute(0, [(run, rows)])
    among = compute(37, [(others[2], 37), (run, rows), (others[0], rows), (others[1], 50)])
    for first, second in zip((*alone[0], *alone[1]), (*among[0], *among[1]), strict=True):
        assert torch.equal(first, second)


def test_several_calls_equal_one_bitwise() -> None:
    store = make_store()
    run, twin = make_run(store, 7, seed=1), make_run(store, 7, seed=1)
    x_TD, dys_TO = inputs(96, (0, 1, 2))
    lengths = [16, 48, 32]
    run_group(store, (0, 1, 2), [(run, length) for length in lengths], x_TD, dys_TO, True)
    start = 0
    for length in lengths:
        rows = slice(start, start + length)
        run_group(store, (0, 1, 2), [(twin, length)], x_TD[rows], [dy[rows] for dy in dys_TO], True)
        start += length
    one, several = gradient_matrices(store, run), gradient_matrices(store, twin)
    assert all(torch.equal(one[name], several[name]) for name in one)


@pytest.mark.parametrize("bounds", [(0, 16, 64, 96), (0, 32, 64, 96)])
def test_unit_order_decides_the_sum_whatever_the_packing(bounds: tuple[int, ...]) -> None:
    store = make_store()
    run, twin = make_run(store, 7, seed=1), make_run(store, 7, seed=1)
    x_TD, (dy_TO,) = inputs(96, (3,))
    base = make_bases((3,), 16)
    spans = [slice(first, last) for first, last in pairwise(bounds)]
    for owner, order in ((run, [0, 1, 2]), (twin, [2, 0, 1])):
        rows = torch.cat([torch.arange(96)[spans[index]] for index in order])
        store.begin(owner)
        linears = LoraLinears(
            store,
            [owner.version] * 3,
            [owner] * 3,
            [spans[index].stop - spans[index].start for index in order],
            unit_order=order,
            is_deterministic=True,
        )
        (y,) = linears.group(x_TD[rows], base, (3,))
        torch.autograd.backward(y, dy_TO[rows])
        linears.flush()
        store.commit(owner)
    one, other = gradient_matrices(store, run), gradient_matrices(store, twin)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_failure_in_backward_leaves_stage_and_gradient() -> None:
    store = make_store()
    run = make_run(store, 4)
    x_TD, (dy_TO,) = inputs(6, (3,))
    run_group(store, (3,), [(run, 6)], x_TD, [dy_TO])
    before = gradient_matrices(store, run)
    store.begin(run)
    linears = LoraLinears(store, [run.version], [run], [6])
    base = make_bases((3,))
    (y,) = linears.group(x_TD, base, (3,))
    torch.autograd.backward(y, dy_TO)  # and then something else fails, so nobody calls flush
    store.discard(run)
    after = gradient_matrices(store, run)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_stacks_are_gathered_once_per_version() -> None:
    store = make_store()
    run = make_run(store, 4)
    x_TD, _ = inputs(6, (3,))
    linears = LoraLinears(store, [run.version], [None], [6])
    (before,) = linears.group(x_TD, make_bases((3,)), (3,))
    version = store.prepare_version(run)
    store.version_flat(version).zero_()
    store.publish(run, version)
    again = LoraLinears(store, [run.version], [None], [6], workspace=linears.workspace)
    (after,) = again.group(x_TD, make_bases((3,)), (3,))
    assert torch.equal(after, make_bases((3,))[0].forward(x_TD))
    assert not torch.equal(before, after)


@pytest.mark.parametrize("padding", [0, 3])
def test_no_operation_count_grows_with_the_number_of_adapters(padding: int) -> None:
    counts = []
    for num_runs in (4, 16):
        store = make_store()
        rank = {0: 16, 1: 5}
        runs = [make_run(store, rank[i % 2], seed=i, mask=3) for i in range(num_runs)]
        runs.sort(key=lambda run: run.rank)
        units: list[tuple[Run | None, int]] = [
            (run, 64 - (padding if index % 2 else 0)) for index, run in enumerate(runs)
        ]
        x_TD, dys_TO = inputs(sum(count for _, count in units), (4, 5))
        with CountOps() as ops:
            run_group(store, (4, 5), units, x_TD, dys_TO)
        counts.append(ops.counts)
    assert counts[0] == counts[1]


def test_bfloat16_computes_near_the_oracle_with_fp32_gradients() -> None:
    store = make_store(torch.bfloat16)
    run = make_run(store, 16, mask=7)
    x_TD, (dy_TO,) = inputs(40, (3,))
    store.begin(run)
    linears = LoraLinears(store, [run.version], [run], [40])
    base = make_bases((3,))[0]
    base = DenseLinear(base.weight_OD.bfloat16())
    x = x_TD.bfloat16().requires_grad_()
    (y,) = linears.group(x, (base,), (3,))
    torch.autograd.backward(y, dy_TO.bfloat16())
    linears.flush()
    store.commit(run)
    adapter = adapter_of(store, run, 3)
    assert adapter is not None
    expected = lora_linear(x.detach(), base.weight_OD, None, [40], [adapter])
    assert rms_error(y.detach(), expected) < 1e-2  # bfloat16 keeps 8 bits
    torch.autograd.backward(expected, dy_TO.bfloat16().double())
    gradients = gradient_matrices(store, run)
    for half in "ab":
        gradient = gradients[f"{linear_name(0, 'o')}.lora_{half}"]
        assert gradient.dtype == torch.float32
        assert rms_error(gradient, getattr(adapter, f"lora_{half}").grad) < 1e-2


def test_portions_are_those_of_the_store() -> None:
    assert Targets(7) == LAYERS | Targets.UNEMBED
