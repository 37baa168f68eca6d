"""Losses and their derivatives against the oracle, and rows that must not count."""

from collections.abc import Mapping
from functools import partial

import numpy as np
import pytest
import torch
from plain_losses import CONFIGS, POLICY, plain_losses, random_inputs

from weft.client.losses import LOSSES
from weft.engine.adapters.losses import LossBatch, coefficients, sequence_log_ratios

# float32 against float64: a ratio of e^2 is known to some 1e-7 of it
close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-6)


def build(
    loss_fns: list[str | None],
    row_counts: list[int],
    inputs: Mapping[str, object],
    configs: Mapping[str, Mapping[str, float]] = CONFIGS,
) -> LossBatch:
    total = sum(row_counts)
    columns = {name: np.asarray(values, np.float32) for name, values in inputs.items()}
    if "gspo" in loss_fns:
        columns.setdefault("sequence_ratio_mask", np.ones(total, np.float32))
        columns.setdefault("clip_low_threshold", np.full(total, 0.9, np.float32))
        columns.setdefault("clip_high_threshold", np.full(total, 1.1, np.float32))
    return LossBatch.build(
        loss_fns=loss_fns,
        configs=[configs.get(loss_fn or "", {}) for loss_fn in loss_fns],
        row_counts=row_counts,
        targets=np.zeros(total, np.int64),
        inputs=columns,
        device="cpu",
        cu_seqlens=np.cumsum([0, *(count for count in row_counts if count)]).astype(np.int32),
    )


def run(losses: LossBatch, logprobs: object) -> tuple[torch.Tensor, torch.Tensor]:
    logprobs_T = torch.as_tensor(logprobs, dtype=torch.float32)
    ready = losses.with_sequence_ratios(logprobs_T)
    return coefficients(ready, torch.arange(len(logprobs_T)), logprobs_T)


def test_every_loss_of_the_table_is_known() -> None:
    for name in LOSSES:
        inputs = {"weights": [0.5, 1.0], "advantages": [0.5, 1.0], "logprobs": [-1.05, -1.95]}
        values, slopes = run(build([name], [2], inputs), [-1.0, -2.0])
        assert values.ne(0).all()
        assert slopes.ne(0).all()


@pytest.mark.parametrize("seed", range(3))
def test_a_mixed_batch_of_every_loss_equals_the_oracle(seed: int) -> None:
    generator = np.random.default_rng(seed)
    loss_fns: list[str | None] = [*LOSSES, None, "gspo", "ppo", "cispo", "dro"]
    counts = [int(generator.integers(5, 40)) for _ in loss_fns]
    made = [random_inputs(generator, count) for count in counts]
    columns = {name: np.concatenate([one[name] for one in made]) for name in made[0]}
    logprobs = columns["logprobs"] + generator.normal(0, 0.3, sum(counts)).astype(np.float32)
    values, slopes = run(build(loss_fns, counts, columns), logprobs)
    start = 0
    for loss_fn, count, inputs in zip(loss_fns, counts, made, strict=True):
        rows = slice(start, start + count)
        start += count
        if loss_fn is None:
            assert not values[rows].any()
            assert not slopes[rows].any()
            continue
        leaf = torch.from_numpy(logprobs[rows]).double().requires_grad_()
        expected = plain_losses(loss_fn, leaf, inputs)
        (gradient,) = torch.autograd.grad(expected.sum(), leaf)
        close(values[rows].double(), expected.detach())
        close(slopes[rows].double(), gradient)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("distance", [-0.25, -1e-3, 1e-3, 0.25])
@pytest.mark.parametrize("loss_fn", ["ppo", "cispo", "gspo"])
@pytest.mark.parametrize("edge", ["clip_low_threshold", "clip_high_threshold"])
def test_both_sides_of_every_clip_edge_equal_the_oracle(
    loss_fn: str, edge: str, distance: float, advantage: float
) -> None:
    bounds = {"clip_low_threshold": 0.7, "clip_high_threshold": 1.5}
    logprob = np.float32(np.log(bounds[edge] * (1 + distance)) - 2.0)
    inputs = {"advantages": [advantage], "logprobs": [-2.0], "sequence_ratio_mask": [1.0]}
    inputs |= {name: [bound] for name, bound in bounds.items()}
    columns = {name: np.array(values, np.float32) for name, values in inputs.items()}
    values, slopes = run(build([loss_fn], [1], columns, {loss_fn: bounds}), [logprob])
    leaf = torch.tensor([logprob]).double().requires_grad_()
    expected = plain_losses(loss_fn, leaf, columns, bounds).sum()
    slope = torch.autograd.grad(expected, leaf)[0]
    close(values.sum().double(), expected.detach())
    close(slopes.double(), slope)


@pytest.mark.parametrize("logprob", [float("nan"), float("-inf"), float("inf")])
@pytest.mark.parametrize("loss_fn", list(LOSSES))
def test_a_zero_weight_row_is_exactly_nothing(loss_fn: str, logprob: float) -> None:
    sampled = 0.0 if loss_fn == "dro" else -1e4
    inputs = {"weights": [0.0], "advantages": [0.0], "logprobs": [sampled]}
    losses = build([loss_fn], [1], inputs)
    assert not losses.is_trained_host.any()
    values, slopes = run(losses, [logprob])
    assert values.tolist() == slopes.tolist() == [0.0]


def test_the_quadratic_term_of_dro_acts_without_an_advantage() -> None:
    losses = build(["dro"], [2], {"advantages": [0.0, 0.0], "logprobs": [-1.0, 0.0]})
    assert losses.is_trained_host.tolist() == [True, False]
    values, slopes = run(losses, [-3.0, -3.0])
    assert values.tolist() == pytest.approx([0.05 / 2 * 4, 0])
    assert slopes.tolist() == pytest.approx([0.05 * -2, 0])


def test_dro_without_its_quadratic_term_leaves_out_rows_without_advantage() -> None:
    inputs = {"advantages": [0.0, 1.0], "logprobs": [-1.0, -1.0]}
    losses = build(["dro"], [2], inputs, {"dro": {"beta": 0.0}})
    assert losses.is_trained_host.tolist() == [False, True]
    assert run(losses, [-3.0, -3.0])[1].tolist() == [0.0, -1.0]


@pytest.mark.parametrize("sampled", [-1e4, 1e4])
@pytest.mark.parametrize("loss_fn", POLICY)
def test_an_extreme_ratio_stays_with_its_own_row(loss_fn: str, sampled: float) -> None:
    inputs = {"advantages": [1.0, 1.0, 1.0], "logprobs": [-1.0, sampled, -1.0]}
    tame = inputs | {"logprobs": [-1.0, -1.0, -1.0]}
    values, slopes = run(build([loss_fn] * 3, [1, 1, 1], inputs), [-1.0] * 3)
    expected, expected_slopes = run(build([loss_fn] * 3, [1, 1, 1], tame), [-1.0] * 3)
    assert torch.equal(values[::2], expected[::2])
    assert torch.equal(slopes[::2], expected_slopes[::2])
    assert not torch.equal(values[1], expected[1])


def test_an_unclipped_ratio_may_be_infinite() -> None:
    losses = build(["importance_sampling"], [1], {"advantages": [1.0], "logprobs": [-1e4]})
    values, slopes = run(losses, [-1.0])
    assert values.tolist() == slopes.tolist() == [float("-inf")]


@pytest.mark.parametrize(
    ("loss_fn", "value", "slope"), [("ppo", -2.4, 0.0), ("gspo", -2.2, 0.0), ("cispo", 8.0, -8.0)]
)
def test_a_clipped_ratio_stays_finite(loss_fn: str, value: float, slope: float) -> None:
    losses = build([loss_fn], [1], {"advantages": [2.0], "logprobs": [-1e4]})
    values, slopes = run(losses, [-1.0])
    assert values.tolist() == pytest.approx([value])
    assert slopes.tolist() == [slope]


def test_tokens_of_a_sequence_share_the_mean_over_its_mask() -> None:
    inputs = {
        "advantages": [0.0, 1.0, -2.0, 1.0],
        "logprobs": [-9.0, -1.0, -1.0, -1.0],
        "sequence_ratio_mask": [0.0, 1.0, 0.5, 1.0],
        "clip_low_threshold": [0.0] * 4,
        "clip_high_threshold": [9.0] * 4,
    }
    losses = build(["gspo", "gspo"], [3, 1], inputs)
    values, slopes = run(losses, [-1.0, -0.7, -1.1, -0.5])
    ratio = np.exp((0.3 - 0.1) / 2)
    expected = [0, -ratio, 2 * ratio, -np.exp(0.5)]
    assert values.tolist() == pytest.approx(expected)
    assert slopes.tolist() == pytest.approx(expected)


def test_each_token_of_gspo_has_its_own_bounds() -> None:
    inputs = {
        "advantages": [1.0, 1.0],
        "logprobs": [-2.0, -2.0],
        "clip_low_threshold": [0.0, 0.0],
        "clip_high_threshold": [1.5, 9.0],
    }
    _, slopes = run(build(["gspo"], [2], inputs), [-1.0, -1.0])
    assert slopes.tolist() == pytest.approx([0.0, -np.e])


def test_a_neighbour_that_is_not_finite_leaves_a_sequence_its_ratio() -> None:
    logprobs = np.array([np.nan, np.nan, -1.0, -1.0], np.float32)
    members = np.array([True, True, True, False])
    found = sequence_log_ratios(
        logprobs, np.full(4, -1.5, np.float32), members, np.array([0, 2, 4])
    )
    assert found[2:].tolist() == [0.5, 0.5]


def test_a_sequence_outside_its_ratio_may_be_anything() -> None:
    logprobs = np.array([np.nan, -1.0], np.float32)
    found = sequence_log_ratios(
        logprobs, np.full(2, -1.5, np.float32), np.array([False, True]), np.array([0, 2])
    )
    assert found.tolist() == [0.5, 0.5]


def test_inputs_of_another_loss_are_not_read() -> None:
    inputs = {
        "weights": [2.0, float("nan"), float("nan")],
        "advantages": [float("nan"), 3.0, 1.0],
        "logprobs": [float("nan"), -1.0, -1.0],
        "sequence_ratio_mask": [float("nan"), float("nan"), 1.0],
    }
    losses = build(["cross_entropy", "importance_sampling", "gspo"], [1, 1, 1], inputs)
    values, slopes = run(losses, [-1.0, -1.0, -1.0])
    assert values.tolist() == [2.0, -3.0, -1.0]
    assert slopes.tolist() == [-2.0, -3.0, -1.0]


def test_a_batch_without_gspo_has_no_sequence_ratios() -> None:
    losses = build(["ppo"], [1], {"advantages": [1.0], "logprobs": [-1.0]})
    assert losses.sequences is None
    assert losses.with_sequence_ratios(torch.zeros(1)) is losses
