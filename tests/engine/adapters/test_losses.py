"""Losses and their derivatives against the oracle, and rows that must not count."""

from collections.abc import Mapping

import numpy as np
import pytest
import torch

from weft.client.losses import LOSSES
from weft.engine.adapters.losses import LossBatch, coefficients
from weft.kernels.reference import token_loss

CONFIG = {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}


def build(
    loss_fns: list[str | None], row_counts: list[int], inputs: Mapping[str, list[float]]
) -> LossBatch:
    return LossBatch.build(
        loss_fns=loss_fns,
        configs=[CONFIG if loss_fn == "ppo" else {} for loss_fn in loss_fns],
        row_counts=row_counts,
        targets=np.zeros(sum(row_counts), np.int64),
        inputs={name: np.array(values, np.float32) for name, values in inputs.items()},
        device="cpu",
    )


def all_rows(losses: LossBatch) -> torch.Tensor:
    return torch.arange(len(losses.targets_T))


def test_every_loss_of_the_table_is_known() -> None:
    for name, loss in LOSSES.items():
        inputs = {item.name: [0.5, 1.0] for item in loss.inputs if item.name != "target_tokens"}
        losses = build([name], [2], inputs)
        values, slopes = coefficients(losses, all_rows(losses), torch.tensor([-1.0, -2.0]))
        assert values.ne(0).all()
        assert slopes.ne(0).all()


@pytest.mark.parametrize("seed", range(3))
def test_a_mixed_batch_equals_the_oracle(seed: int) -> None:
    rng = np.random.default_rng(seed)
    loss_fns = ["cross_entropy", "ppo", None, "importance_sampling", "ppo", "cross_entropy"]
    counts = [7, 20, 3, 9, 40, 0]
    total = sum(counts)
    columns = {
        name: rng.normal(size=total).astype(np.float32) for name in ("weights", "advantages")
    }
    columns["advantages"][rng.random(total) < 0.2] = 0
    columns["logprobs"] = rng.normal(-1, 1, total).astype(np.float32)
    logprobs = torch.from_numpy(columns["logprobs"] + rng.normal(0, 0.3, total).astype(np.float32))
    losses = build(loss_fns, counts, {name: list(c) for name, c in columns.items()})
    values, slopes = coefficients(losses, all_rows(losses), logprobs)
    for row, loss_fn in enumerate(np.repeat(np.array(loss_fns, object), counts)):
        if loss_fn is None:
            assert values[row] == slopes[row] == 0
            continue
        logprob = logprobs[row].double().requires_grad_()
        weight = columns["weights" if loss_fn == "cross_entropy" else "advantages"][row]
        expected = token_loss(
            loss_fn,
            logprob,
            weight=float(weight),
            sampling_logprob=float(columns["logprobs"][row]),
            low=0.8,
            high=1.2,
        )
        assert float(values[row]) == pytest.approx(float(expected.detach()), rel=1e-5, abs=1e-6)
        slope = torch.autograd.grad(expected, logprob)[0] if expected.requires_grad else 0.0
        assert float(slopes[row]) == pytest.approx(float(slope), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("logprob", [float("nan"), float("-inf"), float("inf")])
@pytest.mark.parametrize("loss_fn", list(LOSSES))
def test_a_zero_weight_row_is_exactly_nothing(loss_fn: str, logprob: float) -> None:
    inputs = {"weights": [0.0], "advantages": [0.0], "logprobs": [-1e4]}
    losses = build([loss_fn], [1], inputs)
    assert not losses.is_trained_host.any()
    values, slopes = coefficients(losses, all_rows(losses), torch.tensor([logprob]))
    assert values.tolist() == slopes.tolist() == [0.0]


def test_an_extreme_ratio_is_infinite_for_its_own_row_only() -> None:
    inputs = {"advantages": [1.0, 1.0, 1.0], "logprobs": [-1.0, -1e4, -1.0]}
    losses = build(["importance_sampling"], [3], inputs)
    values, slopes = coefficients(losses, all_rows(losses), torch.full((3,), -1.0))
    assert values.tolist() == slopes.tolist() == [-1.0, float("-inf"), -1.0]


def test_ppo_stays_finite_where_it_is_clipped() -> None:
    losses = build(["ppo"], [1], {"advantages": [2.0], "logprobs": [-1e4]})
    values, slopes = coefficients(losses, all_rows(losses), torch.tensor([-1.0]))
    assert values.tolist() == pytest.approx([-2.4])
    assert slopes.tolist() == [0.0]


def test_inputs_of_another_loss_are_not_read() -> None:
    inputs = {
        "weights": [2.0, float("nan")],
        "advantages": [float("nan"), 3.0],
        "logprobs": [0.0, -1.0],
    }
    losses = build(["cross_entropy", "importance_sampling"], [1, 1], inputs)
    values, slopes = coefficients(losses, all_rows(losses), torch.tensor([-1.0, -1.0]))
    assert values.tolist() == [2.0, -3.0]
    assert slopes.tolist() == [-2.0, -3.0]
