"""Every loss through the official SDK, against its formula."""

from typing import Any

import numpy as np
import pytest
from talking import logprobs_of, policy_datum, since

WORDS = "the red fox sees"
N = len(WORDS) - 1
A = np.linspace(-1, 1.5, N)


def _clipped(ratio: Any, low: float, high: float) -> Any:
    return -np.minimum(ratio * A, np.clip(ratio, low, high) * A).sum()


FORMULAS: dict[str, Any] = {
    "importance_sampling": lambda lp, q: -(np.exp(lp - q) * A).sum(),
    "ppo": lambda lp, q: _clipped(np.exp(lp - q), 0.8, 1.2),
    "cispo": lambda lp, q: -(np.clip(np.exp(lp - q), 0.0, 4.0) * lp * A).sum(),
    "dro": lambda lp, q: -(lp * A - 0.05 / 2 * (lp - q) ** 2).sum(),
}


def _sampled(trainer: Any) -> np.ndarray:
    """Log-probabilities of a sampler that is off by up to a half, where clips act."""
    exact = logprobs_of(
        trainer.forward([policy_datum(WORDS, A, A)], "importance_sampling").result()
    )[0]
    return exact + np.linspace(0.5, -0.3, N)


@pytest.mark.parametrize("loss_fn", sorted(FORMULAS))
def test_a_loss_is_its_formula(trainer: Any, loss_fn: str) -> None:
    q = _sampled(trainer).astype(np.float32)
    output = trainer.forward_backward([policy_datum(WORDS, A, q)], loss_fn).result()
    (lp,) = logprobs_of(output)
    np.testing.assert_allclose(output.metrics["loss:sum"], FORMULAS[loss_fn](lp, q), rtol=1e-3)


CONFIGS = [
    pytest.param("ppo", {"clip_low_threshold": 0.95, "clip_high_threshold": 1.05}, id="ppo"),
    pytest.param("cispo", {"clip_low_threshold": 0.95, "clip_high_threshold": 1.05}, id="cispo"),
    pytest.param("dro", {"beta": 5.0}, id="dro"),
]


@pytest.mark.parametrize(("loss_fn", "config"), CONFIGS)
def test_a_loss_obeys_its_config(trainer: Any, loss_fn: str, config: dict[str, float]) -> None:
    data = [policy_datum(WORDS, A, _sampled(trainer))]
    usual = trainer.forward(data, loss_fn).result().metrics["loss:sum"]
    for name, value in config.items():
        changed = trainer.forward(data, loss_fn, {name: value}).result().metrics["loss:sum"]
        assert changed != pytest.approx(usual, rel=1e-4), name


@since(0, 36)
def test_gspo_takes_its_ratio_over_the_masked_tokens(trainer: Any) -> None:
    q = _sampled(trainer)
    mask = np.zeros(N)
    mask[5:] = 1
    bounds = {"clip_low_threshold": 0.5, "clip_high_threshold": 2.0}
    data = [policy_datum(WORDS, A, q, sequence_ratio_mask=mask)]
    output = trainer.forward_backward(data, "gspo", bounds).result()
    (lp,) = logprobs_of(output)
    ratio = np.exp((lp - q)[5:].mean())
    expected = _clipped(np.full(N, ratio), 0.5, 2.0)
    np.testing.assert_allclose(output.metrics["loss:sum"], expected, rtol=1e-3)


@since(0, 36)
def test_gspo_takes_bounds_per_token(trainer: Any) -> None:
    q = _sampled(trainer)
    wide = {"clip_low_threshold": np.full(N, 0.5), "clip_high_threshold": np.full(N, 2.0)}
    narrow = {"clip_low_threshold": np.full(N, 1.0), "clip_high_threshold": np.full(N, 1.0)}
    losses = [
        trainer.forward(
            [policy_datum(WORDS, A, q, sequence_ratio_mask=np.ones(N), **bounds)], "gspo"
        ).result()
        for bounds in (wide, narrow)
    ]
    assert losses[0].metrics["loss:sum"] != pytest.approx(losses[1].metrics["loss:sum"], rel=1e-6)
