"""Linears with adapters by the Triton kernels: against the oracle, and into the stages of runs."""

import interpreter
import pytest
import torch
from lora_helpers import (
    GROUPS,
    SITES,
    TOLERANCE,
    check_against_oracle,
    gradient_matrices,
    inputs,
    make_bases,
    make_run,
    make_store,
    rms_error,
    run_group,
)

from weft.engine.adapters.binding import Binder
from weft.engine.adapters.store import AdapterStore, Run
from weft.engine.model.gpu_pieces import TritonPieces
from weft.engine.model.pieces import TorchPieces

QKV = GROUPS[0]


@pytest.fixture
def store() -> AdapterStore:
    return make_store(uses_triton=True, device=interpreter.kernel_device())


@pytest.mark.parametrize("sites", GROUPS, ids=lambda sites: SITES[sites[0]].module)
def test_mixed_ranks_ragged_units_and_bare_rows_equal_the_oracle(
    store: AdapterStore, sites: tuple[int, ...]
) -> None:
    runs = [make_run(store, rank, seed=rank) for rank in (1, 7, 16, 64)]
    units: list[tuple[Run | None, int]] = list(zip(runs, [5, 0, 1, 65], strict=True))
    units += [(None, 9), (runs[1], 12), (runs[3], 33)]
    check_against_oracle(store, sites, units, spare_rows=3)


def test_targets_that_differ_share_a_batch(store: AdapterStore) -> None:
    runs = [make_run(store, 8, seed=mask, mask=mask) for mask in (1, 2, 4, 7)]
    for sites in GROUPS:
        check_against_oracle(store, sites, [(run, 8) for run in runs])


def test_gradients_of_several_calls_add_up(store: AdapterStore) -> None:
    run = make_run(store, 7)
    x_TD, dys_TO = inputs(20, QKV)
    x_TD, dys_TO = x_TD.to(store.device), [dy.to(store.device) for dy in dys_TO]
    run_group(store, QKV, [(run, 20)], x_TD, dys_TO)
    once = gradient_matrices(store, run)
    run_group(store, QKV, [(run, 20)], x_TD, dys_TO)
    for name, gradient in gradient_matrices(store, run).items():
        assert torch.equal(gradient, 2 * once[name])


def test_batches_of_one_command_add_up(store: AdapterStore) -> None:
    run = make_run(store, 7)
    x_TD, dys_TO = inputs(20, QKV)
    x_TD, dys_TO = x_TD.to(store.device), [dy.to(store.device) for dy in dys_TO]
    run_group(store, QKV, [(run, 20)], x_TD, dys_TO)
    once = gradient_matrices(store, run)
    run.has_gradient = False
    store.states.planes[run.stage_plane].fill_(float("nan"))
    store.begin(run)
    for _ in range(2):
        linears = Binder(store).bind([run.version], [run], [20])
        x = x_TD.clone().requires_grad_()
        torch.autograd.backward(linears.group(x, make_bases(QKV, like=x_TD), QKV), dys_TO)
        linears.flush()
    store.commit(run)
    for name, gradient in gradient_matrices(store, run).items():
        assert torch.equal(gradient, 2 * once[name])


def test_a_run_and_its_fork_share_a_batch_and_no_gradient(store: AdapterStore) -> None:
    run, other = make_run(store, 7), make_run(store, 7)
    x_TD, dys_TO = inputs(20, QKV)
    x_TD, dys_TO = x_TD.to(store.device), [dy.to(store.device) for dy in dys_TO]
    fork = store.fork(run)
    run_group(store, QKV, [(run, 12), (fork, 8)], x_TD, dys_TO)
    for each, rows in ((run, slice(12)), (fork, slice(12, 20))):
        other.has_gradient = False
        run_group(
            store,
            QKV,
            [(other, rows.stop - (rows.start or 0))],
            x_TD[rows],
            [dy[rows] for dy in dys_TO],
        )
        expected = gradient_matrices(store, other)
        for name, gradient in gradient_matrices(store, each).items():
            assert torch.equal(gradient, expected[name])
    store.check_integrity([run, fork, other])


def test_rows_that_lie_apart_are_taken(store: AdapterStore) -> None:
    run = make_run(store, 7)
    wide_TD, dys_TO = inputs(20, QKV)
    wide_TD, dys_TO = wide_TD.to(store.device), [dy.to(store.device) for dy in dys_TO]
    x_TD = torch.cat([wide_TD, wide_TD], 1)[:, :32]
    expected = run_group(store, QKV, [(run, 20)], wide_TD, dys_TO)
    linears = Binder(store).bind([run.version], [None], [20])
    with torch.no_grad():
        ys = linears.group(x_TD, make_bases(QKV, like=wide_TD), QKV)
    assert not x_TD.is_contiguous()
    for y, same in zip(ys, expected.ys, strict=True):
        assert rms_error(y, same.cpu()) < TOLERANCE


def test_a_failed_command_leaves_no_trace(store: AdapterStore) -> None:
    run = make_run(store, 7)
    x_TD, dys_TO = inputs(20, QKV)
    x_TD, dys_TO = x_TD.to(store.device), [dy.to(store.device) for dy in dys_TO]
    run_group(store, QKV, [(run, 20)], x_TD, dys_TO)
    before = gradient_matrices(store, run)
    store.begin(run)
    linears = Binder(store).bind([run.version], [run], [20])
    x = x_TD.clone().requires_grad_()
    ys = linears.group(x, make_bases(QKV, like=x_TD), QKV)
    torch.autograd.backward(ys, [dy * float("nan") for dy in dys_TO])
    store.discard(run)
    for name, gradient in gradient_matrices(store, run).items():
        assert torch.equal(gradient, before[name])


def test_a_group_that_backward_does_not_reach_gives_zeros(store: AdapterStore) -> None:
    run = make_run(store, 7)
    x_TD, dys_TO = inputs(20, QKV)
    x_TD, dys_TO = x_TD.to(store.device), [dy.to(store.device) for dy in dys_TO]
    store.states.planes[1:3].fill_(float("nan"))  # where gradients and stages lie
    run_group(store, QKV, [(run, 20)], x_TD, dys_TO)
    for name, gradient in gradient_matrices(store, run).items():
        is_reached = any(f".{module}_proj." in name for module in "qkv")
        assert gradient.isfinite().all()
        assert bool(gradient.any()) == is_reached


def test_a_run_without_rows_gets_zeros(store: AdapterStore) -> None:
    run, idle = make_run(store, 7), make_run(store, 7)
    x_TD, dys_TO = inputs(20, QKV)
    x_TD, dys_TO = x_TD.to(store.device), [dy.to(store.device) for dy in dys_TO]
    store.states.planes[1:3].fill_(float("nan"))
    run_group(store, QKV, [(run, 20), (idle, 0)], x_TD, dys_TO)
    assert not any(gradient.any() for gradient in gradient_matrices(store, idle).values())


def test_company_changes_no_bit(store: AdapterStore) -> None:
    run, other, third = (make_run(store, rank, seed=rank) for rank in (7, 16, 200))
    x_TD, dys_TO = inputs(160, QKV)
    x_TD, dys_TO = x_TD.to(store.device), [dy.to(store.device) for dy in dys_TO]

    def of_run(units: list[tuple[Run | None, int]], first: int) -> list[torch.Tensor]:
        """Outputs and gradients of 40 rows of `run`, which begin at row `first` of the batch."""
        for each in (run, other, third):
            each.has_gradient = False
        rows = torch.arange(160, device=store.device).roll(first)
        result = run_group(store, QKV, units, x_TD[rows], [dy[rows] for dy in dys_TO], True)
        own = slice(first, first + 40)
        gradients = gradient_matrices(store, run).values()
        return [*(y[own] for y in result.ys), result.dx[own], *gradients]

    alone = of_run([(run, 40)], 0)
    among = of_run([(other, 60), (run, 40), (None, 8), (third, 52)], 60)
    for mine, same in zip(alone, among, strict=True):
        assert torch.equal(mine, same)


def test_bfloat16_is_as_close_as_the_batched_form() -> None:
    errors: dict[bool, list[float]] = {}
    for uses_triton in (False, True):
        store = make_store(torch.bfloat16, uses_triton, interpreter.kernel_device())
        run = make_run(store, 16)
        x_TD, dys_TO = inputs(80, QKV)
        x_TD, dys_TO = x_TD.to(store.device), [dy.to(store.device) for dy in dys_TO]
        exact = make_store(device=store.device)
        twin = make_run(exact, 16)
        expected = run_group(exact, QKV, [(twin, 80)], x_TD, dys_TO)
        found = run_group(
            store, QKV, [(run, 80)], x_TD.bfloat16(), [dy.bfloat16() for dy in dys_TO]
        )
        theirs = gradient_matrices(exact, twin)
        errors[uses_triton] = [
            *(rms_error(y, z.cpu()) for y, z in zip(found.ys, expected.ys, strict=True)),
            rms_error(found.dx, expected.dx.cpu()),
            *(
                rms_error(g, theirs[name])
                for name, g in gradient_matrices(store, run).items()
                if theirs[name].any()
            ),
        ]
    for ours, batched in zip(errors[True], errors[False], strict=True):
        assert ours <= 2 * batched


@pytest.mark.parametrize("is_bare", [False, True])
def test_gate_and_up_with_what_follows_them_are_those_of_the_batched_form(
    store: AdapterStore, is_bare: bool
) -> None:
    sites = GROUPS[2]
    x_TD, (dh_TF, _) = inputs(40, sites)
    found = []
    for own, pieces in ((store, TritonPieces()), (make_store(), TorchPieces())):
        runs: list[Run | None] = [make_run(own, 7), None, make_run(own, 40, mask=1)]
        runs[0] = None if is_bare else runs[0]
        held = [run for run in runs if run is not None]
        own.begin(*held)
        linears = Binder(own).bind(
            [None if run is None else run.version for run in runs], runs, [20, 3, 9]
        )
        x = x_TD.to(own.device).requires_grad_()
        h_TF = linears.gated(x, make_bases(sites, like=x.detach()), sites, pieces)
        torch.autograd.backward(h_TF, dh_TF.to(own.device))
        linears.flush()
        own.commit(*held)
        assert x.grad is not None
        gradients = gradient_matrices(own, held[0])
        found.append([h_TF.detach(), x.grad, *(gradients[name] for name in sorted(gradients))])
    for ours, theirs in zip(*found, strict=True):
        assert rms_error(ours, theirs) < TOLERANCE if theirs.any() else not ours.any()
