"""Every field of AdamParams through the official SDK."""

from typing import Any

import numpy as np
import pytest
from talking import scores, settled, step
from tinker import ServiceClient

FIELDS = {
    "learning_rate": 3e-2,
    "beta1": 0.5,
    "beta2": 0.5,
    "eps": 1e-2,
    "weight_decay": 0.5,
    "grad_clip_norm": 1e-3,
}


def _after_three_steps(service: ServiceClient, **params: float) -> np.ndarray:
    trainer = settled(service.create_lora_training_client("weft/tiny", rank=4, seed=1))
    for words in ("the red fox sees", "an owl by night", "so it is"):
        step(trainer, words, **{"eps": 1e-8, **params})
    return scores(trainer)


@pytest.mark.parametrize("field", sorted(FIELDS))
def test_a_field_changes_the_steps(service: ServiceClient, field: str) -> None:
    # A clip changes the size of gradients, which Adam undoes but for eps.
    also = {"eps": 1e-2} if field == "grad_clip_norm" else {}
    usual = _after_three_steps(service, **also)
    changed = _after_three_steps(service, **also, **{field: FIELDS[field]})
    assert np.abs(changed - usual).max() > 1e-4


def test_a_clipped_step_tells_the_norm_before(trainer: Any) -> None:
    metrics = step(trainer, grad_clip_norm=1e-3).metrics
    assert metrics["unclipped_grad_l2:mean"] > 1e-3


@pytest.mark.parametrize(("field", "value"), [("learning_rate", -1.0), ("beta1", 1.5)])
def test_an_impossible_value_is_refused_by_name(trainer: Any, field: str, value: float) -> None:
    with pytest.raises(Exception, match=field):
        step(trainer, "the red fox", **{field: value})
    step(trainer)
