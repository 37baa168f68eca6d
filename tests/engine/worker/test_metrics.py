"""What the answer to a pass tells about it, against plain loops over its tokens."""

from math import exp, isfinite
from typing import Any

import numpy as np
import pytest
from plain_losses import CONFIGS, POLICY, random_inputs

from weft.client.losses import LOSSES
from weft.engine.adapters.soft_targets import SoftTargets
from weft.engine.worker.commands import Origin, PassWork
from weft.engine.worker.metrics import MAX_LOG_RATIO, pass_metrics
from weft.engine.worker.units import cut_units

PLAIN = {"loss:sum", "num_datums:sum", "num_tokens:sum", "num_loss_tokens:sum"}
SAMPLED = {
    "entropy:mean",
    "kl_sample_train_v1:mean",
    "kl_sample_train_v2:mean",
    "ratio:mean",
    "ratio:max",
}


def work(loss_fn: str, lengths: list[int], inputs: dict[str, Any], **fields: Any) -> PassWork:
    names = [item.name for item in LOSSES[loss_fn].inputs[1:]]
    return PassWork(
        origin=Origin(1, 1, "local/s", 1),
        run_id="r",
        loss_fn=loss_fn,
        loss_fn_config=CONFIGS[loss_fn] | fields.pop("config", {}),
        forward_only=False,
        part_outputs=(sum(lengths),),
        tokens=np.zeros(sum(lengths), np.int32),
        lengths=np.array(lengths, np.int32),
        targets=np.zeros(sum(lengths), np.int32),
        inputs={name: np.asarray(inputs[name], np.float32) for name in names},
        units=cut_units(lengths, 64),
        **fields,
    )


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def plain_metrics(one: PassWork, logprobs: np.ndarray) -> dict[str, float]:
    """The same over one datum, a token at a time."""
    inputs, config = one.inputs, one.loss_fn_config
    tokens = range(len(logprobs))
    is_gspo = one.loss_fn == "gspo"
    mask = inputs.get("sequence_ratio_mask", logprobs)
    pairs = [(float(inputs["logprobs"][i]), float(inputs["advantages"][i])) for i in tokens]
    sampled = [i for i in tokens if (mask[i] != 0 if is_gspo else pairs[i] != (0, 0))]
    differences = [float(logprobs[i]) - pairs[i][0] for i in sampled]
    ratios = {i: exp(float(logprobs[i]) - pairs[i][0]) for i in tokens}
    if is_gspo:
        ratios = dict.fromkeys(tokens, exp(sum(differences) / len(sampled)))
    number = len(sampled)
    found = {
        "entropy:mean": -sum(pairs[i][0] for i in sampled) / number,
        "kl_sample_train_v1:mean": -sum(differences) / number,
        "kl_sample_train_v2:mean": sum(value**2 for value in differences) / 2 / number,
        "ratio:mean": sum(ratios[i] for i in sampled) / number,
        "ratio:max": max(ratios[i] for i in sampled),
    }
    if "clip_low_threshold" in config:
        clipped = []
        for i in tokens:
            low, high = (
                float(inputs[name][i]) if is_gspo else config[name]
                for name in ("clip_low_threshold", "clip_high_threshold")
            )
            sides = ratios[i] < low, ratios[i] > high
            is_above = pairs[i][1] > 0
            if pairs[i][1] != 0:
                clipped.append(any(sides) if one.loss_fn == "cispo" else sides[is_above])
        found["clip_fraction:mean"] = sum(clipped) / len(clipped)
    return found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("loss_fn", POLICY)
def test_figures_of_a_policy_equal_plain_loops(loss_fn: str, seed: int) -> None:
    generator = np.random.default_rng(seed)
    inputs = random_inputs(generator, 40)
    logprobs = inputs["logprobs"] + generator.normal(0, 0.5, 40).astype(np.float32)
    config = {"clip_high_threshold": 1.3} if loss_fn == "cispo" else {}
    one = work(loss_fn, [40], inputs, config=config)
    found = pass_metrics(one, logprobs, 1.5)
    expected = plain_metrics(one, logprobs)
    assert set(found) == PLAIN | set(expected)
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-6)
    assert found["loss:sum"] == 1.5


def test_tokens_and_datums_are_counted() -> None:
    found = pass_metrics(
        work("cross_entropy", [2, 3], {"weights": [0, 1, -1, 0, 0.5]}), np.zeros(5, np.float32), 0.0
    )
    assert found == {
        "loss:sum": 0,
        "num_datums:sum": 2,
        "num_tokens:sum": 5,
        "num_loss_tokens:sum": 3,
    }


def test_a_token_with_several_targets_counts_once() -> None:
    soft = SoftTargets.build(
        np.array([2, 2, 1], np.int32), np.arange(5, dtype=np.int32), floats(1, 2, 0, 0, 3)
    )
    one = work("cross_entropy", [3], {"weights": [0, 0, 3]}, soft=soft)
    assert pass_metrics(one, np.zeros(5, np.float32), 0.0)["num_loss_tokens:sum"] == 2


def test_dro_counts_the_tokens_its_quadratic_term_acts_on() -> None:
    inputs = {"logprobs": [0, -1, -1], "advantages": [0, 0, 1]}
    for beta, number in ((0.05, 2), (0.0, 1)):
        one = work("dro", [3], inputs, config={"beta": beta})
        assert pass_metrics(one, floats(-1, -1, -1), 0.0)["num_loss_tokens:sum"] == number


def test_prompts_are_not_samples() -> None:
    inputs = {"logprobs": [0, 0, -1, -2], "advantages": [0, 0, 0, 1]}
    found = pass_metrics(work("ppo", [4], inputs), floats(-9, -9, -1, -2), 0.0)
    assert found["entropy:mean"] == 1.5
    assert found["kl_sample_train_v1:mean"] == found["kl_sample_train_v2:mean"] == 0
    assert found["ratio:mean"] == found["ratio:max"] == 1


def test_a_call_without_samples_has_no_figures_of_them() -> None:
    nothing = {"logprobs": [0, 0], "advantages": [0, 0], "sequence_ratio_mask": [0, 0]}
    nothing |= {"clip_low_threshold": [1, 1], "clip_high_threshold": [1, 1]}
    for loss_fn in POLICY:
        found = pass_metrics(work(loss_fn, [2], nothing), floats(-1, -1), 0.0)
        assert set(found) == PLAIN


def test_a_call_without_advantages_has_no_clip_fraction() -> None:
    inputs = {"logprobs": [-1, -1], "advantages": [0, 0]}
    found = pass_metrics(work("ppo", [2], inputs), floats(-1, -1), 0.0)
    assert set(found) == PLAIN | SAMPLED


@pytest.mark.parametrize("sampled", [-1e4, 1e4, -3e38, 3e38])
@pytest.mark.parametrize("loss_fn", POLICY)
def test_figures_stay_finite_at_extreme_ratios(loss_fn: str, sampled: float) -> None:
    inputs = {
        "logprobs": [sampled, -1],
        "advantages": [1, -1],
        "sequence_ratio_mask": [1, 1],
        "clip_low_threshold": [0.9, 0.9],
        "clip_high_threshold": [1.1, 1.1],
    }
    found = pass_metrics(work(loss_fn, [2], inputs), floats(-1, -1), 0.0)
    assert all(map(isfinite, found.values()))
    assert found["ratio:max"] <= exp(MAX_LOG_RATIO)
