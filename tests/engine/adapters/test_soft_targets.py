"""Rows with several weighted targets: laid out, cut, joined, and through the head."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from head_helpers import UNEMBED, bind_units, make_head, on_host
from lora_helpers import SITES, adapter_of, gradient_matrices, make_bases, make_run
from torch import Tensor

from weft.engine.adapters.loss_head import HeadResult
from weft.engine.adapters.losses import LossBatch
from weft.engine.adapters.soft_targets import SoftTargets, join
from weft.engine.adapters.store import AdapterStore, Run
from weft.kernels.reference import lora_linear, soft_target_loss

VOCAB_SIZE = SITES[UNEMBED].out_features

Pairs = list[tuple[int, float]]  # targets and weights of one row


def build(rows: Sequence[Pairs]) -> SoftTargets:
    pairs = [pair for row in rows for pair in row]
    return SoftTargets.build(
        np.array([len(row) for row in rows], np.int32),
        np.array([target for target, _ in pairs], np.int32),
        np.array([weight for _, weight in pairs], np.float32),
    )


ROWS: list[Pairs] = [
    [(3, 0.5), (4, 0.25)],
    [(9, 1.0)],
    [],
    [(7, 1.0), (2, 0.5), (7, 2.0), (5, 0.0)],  # one target twice, one without weight
    [(1, 1.0), (1, -1.0)],  # nothing is left of it
    [(6, 1.0), (8, -1.0)],  # no total
]


def test_rows_with_several_targets_are_taken_out() -> None:
    soft = build(ROWS)
    assert soft.rows.tolist() == [0, 3, 4, 5]
    assert soft.starts.tolist() == [0, 2, 6, 8, 10]
    assert soft.targets.tolist() == [3, 4, 7, 2, 7, 5, 1, 1, 6, 8]
    assert soft.totals.tolist() == [0.75, 3.5, 0, 0]
    assert soft.is_trained.tolist() == [True, True, False, True]


def test_every_target_with_a_weight_pulls_once() -> None:
    soft = build(ROWS)
    assert soft.pull_starts.tolist() == [0, 2, 4, 4, 6]
    assert soft.pull_targets.tolist() == [3, 4, 2, 7, 6, 8]
    assert soft.pull_weights.tolist() == [0.5, 0.25, 0.5, 3, 1, -1]


def test_losses_leave_out_targets_without_weight() -> None:
    logprobs = -np.arange(1, 11, dtype=np.float32)
    logprobs[5] = np.nan
    assert build(ROWS).losses(logprobs).tolist() == [1.0, 3 + 2 + 10, 7 - 8, 9 - 10]
    assert build([]).losses(np.zeros(0, np.float32)).tolist() == []


@pytest.mark.parametrize("cut", range(7))
def test_parts_join_to_the_whole(cut: int) -> None:
    whole = build(ROWS)
    joined = join([(0, whole.part(0, cut)), (cut, whole.part(cut, len(ROWS)))])
    for name in SoftTargets.__slots__:
        assert getattr(joined, name).tolist() == getattr(whole, name).tolist()


def test_sums_beyond_float32_are_infinite_and_say_nothing() -> None:
    soft = build([[(1, 3e38), (1, 3e38)]])
    assert soft.totals.tolist() == soft.pull_weights.tolist() == [float("inf")]


@dataclass
class Case:
    """Units of one run each, of cross_entropy with any number of targets a row."""

    runs: list[Run | None]
    units: list[list[Pairs]]
    hidden_TD: Tensor

    def take(self, unit: int) -> "Case":
        start = sum(len(rows) for rows in self.units[:unit])
        hidden_TD = self.hidden_TD[start : start + len(self.units[unit])]
        return Case([self.runs[unit]], [self.units[unit]], hidden_TD)


def random_rows(generator: np.random.Generator, num_rows: int, most: int) -> list[Pairs]:
    rows = []
    for count in generator.integers(0, most + 1, num_rows):
        weights = generator.normal(size=count) * (generator.random(count) > 0.2)
        targets = generator.integers(0, VOCAB_SIZE, count).tolist()
        rows.append(list(zip(targets, weights.astype(np.float32).tolist(), strict=True)))
    return rows


def make_case(store: AdapterStore, seed: int = 0) -> Case:
    """Rows with one target, with few and with many; with adapters of several ranks and without."""
    generator = np.random.default_rng(seed)
    shapes = [(3, 20, 1), (5, 37, 4), (16, 70, 30), (0, 11, 3), (4, 16, 1)]
    runs = [make_run(store, rank, seed=rank) if rank else None for rank, _, _ in shapes]
    units = [random_rows(generator, num_rows, most) for _, num_rows, most in shapes]
    hidden = generator.normal(size=(sum(map(len, units)), 32)).astype(np.float32)
    return Case(runs, units, torch.from_numpy(hidden))


def run_head(
    store: AdapterStore, case: Case, *, is_deterministic: bool = False, softcap: float = 0.0
) -> tuple[HeadResult, list[dict[str, Tensor]]]:
    rows = [row for unit in case.units for row in unit]
    counts = [len(unit) for unit in case.units]
    single = [row[0] if len(row) == 1 else (0, 0.0) for row in rows]
    losses = LossBatch.build(
        loss_fns=["cross_entropy"] * len(counts),
        configs=[{}] * len(counts),
        row_counts=counts,
        targets=np.array([target for target, _ in single]),
        inputs={"weights": np.array([weight for _, weight in single], np.float32)},
        device=store.device,
        num_targets=np.array([len(row) for row in rows], np.int32),
        soft=build(rows),
    )
    runs = [run for run in case.runs if run is not None]
    linears = bind_units(store, case.runs, counts, is_deterministic=is_deterministic)
    store.begin(*runs)
    hidden_TD = case.hidden_TD.to(store.device)
    head = make_head(store, hidden_TD, softcap=softcap, is_deterministic=is_deterministic)
    result = on_host(head.forward_backward(hidden_TD, losses, linears))
    linears.flush()
    store.commit(*runs)
    gradients = [gradient_matrices(store, run) for run in runs]
    for run in runs:
        run.has_gradient = False
    return result, gradients


@pytest.mark.parametrize("softcap", [0.0, 2.0])
@pytest.mark.parametrize("is_deterministic", [False, True])
def test_any_number_of_targets_equals_autograd(
    store: AdapterStore, is_deterministic: bool, softcap: float
) -> None:
    case = make_case(store)
    rows = [row for unit in case.units for row in unit]
    result, gradients = run_head(store, case, is_deterministic=is_deterministic, softcap=softcap)
    hidden = case.hidden_TD.double().requires_grad_()
    adapters = [adapter_of(store, run, UNEMBED) for run in case.runs]
    counts = [len(unit) for unit in case.units]
    logits_TV = lora_linear(hidden, make_bases((UNEMBED,))[0].weight_OD, None, counts, adapters)
    if softcap:
        logits_TV = softcap * torch.tanh(logits_TV / softcap)
    loss = soft_target_loss(logits_TV, rows)
    torch.autograd.backward(loss)
    soft = build(rows)
    found = soft.losses(result.soft_logprobs_M.numpy()).sum() + float(result.losses_T.sum())
    assert found == pytest.approx(float(loss.detach()), rel=1e-5)
    exact = logits_TV.detach().log_softmax(1)
    owners = np.repeat(soft.rows, np.diff(soft.starts))
    torch.testing.assert_close(
        result.soft_logprobs_M.double(), exact[owners, soft.targets], rtol=1e-5, atol=1e-5
    )
    assert not result.logprobs_T[soft.rows].any()
    assert hidden.grad is not None
    # float32 sums over 100 logits and up to 70 rows
    torch.testing.assert_close(result.dhidden_TD.double(), hidden.grad, rtol=1e-4, atol=1e-4)
    leaves = [adapter for adapter in adapters if adapter is not None]
    for adapter, gradient in zip(leaves, gradients, strict=True):
        for half in "ab":
            expected = getattr(adapter, f"lora_{half}").grad
            mine = gradient[f"lm_head.lora_{half}"].double()
            torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4)


def test_rows_without_targets_or_weights_have_exactly_no_gradient(store: AdapterStore) -> None:
    hidden_TD = torch.randn(18, 32, generator=torch.Generator().manual_seed(0))
    case = Case([make_run(store, 3)], [ROWS * 3], hidden_TD)
    result, _ = run_head(store, case)
    is_idle = np.array([False, False, True, False, True, False] * 3)
    assert not result.dhidden_TD[is_idle].any()
    assert result.dhidden_TD[~is_idle].any(1).all()


@pytest.mark.parametrize("unit", [1, 4], ids=["several targets", "one target"])
def test_deterministic_bits_do_not_depend_on_how_many_targets_neighbours_have(
    store: AdapterStore, unit: int
) -> None:
    case = make_case(store, seed=2)
    among, gradients = run_head(store, case, is_deterministic=True)
    alone, own = run_head(store, case.take(unit), is_deterministic=True)
    start = sum(len(rows) for rows in case.units[:unit])
    rows = slice(start, start + len(case.units[unit]))
    assert torch.equal(among.logprobs_T[rows], alone.logprobs_T)
    assert torch.equal(among.dhidden_TD[rows], alone.dhidden_TD)
    place = sum(run is not None for run in case.runs[:unit])
    assert all(torch.equal(gradients[place][name], own[0][name]) for name in own[0])
    before = sum(len(row) for rows in case.units[:unit] for row in rows if len(row) > 1)
    found = among.soft_logprobs_M[before : before + len(alone.soft_logprobs_M)]
    assert torch.equal(found, alone.soft_logprobs_M)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_neighbours_non_finite_rows_never_reach_others(
    store: AdapterStore, poison: float
) -> None:
    case = make_case(store, seed=3)
    clean, gradients = run_head(store, case)
    bad = slice(20, 57)  # of the second unit
    case.hidden_TD[bad] = poison
    spoiled, others = run_head(store, case)
    good = torch.ones(len(case.hidden_TD), dtype=torch.bool)
    good[bad] = False
    assert torch.equal(clean.logprobs_T[good], spoiled.logprobs_T[good])
    assert torch.equal(clean.dhidden_TD[good], spoiled.dhidden_TD[good])
    for place in (0, 2, 3):
        kept = gradients[place]
        assert all(torch.equal(kept[name], others[place][name]) for name in kept)
