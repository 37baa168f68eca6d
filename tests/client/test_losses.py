"""The table of losses, and what it refuses."""

import pytest

from weft.client.errors import BadRequest
from weft.client.losses import LOSSES, check_inputs, fill_config, find_loss


def test_defaults_are_filled_in() -> None:
    assert fill_config(find_loss("ppo"), {"clip_high_threshold": 2}) == {
        "clip_low_threshold": 0.8,
        "clip_high_threshold": 2.0,
    }
    assert fill_config(find_loss("cross_entropy"), None) == {}
    assert fill_config(find_loss("cispo"), None) == {
        "clip_low_threshold": 0.0,
        "clip_high_threshold": 4.0,
    }
    assert fill_config(find_loss("dro"), None) == {"beta": 0.05}
    assert fill_config(find_loss("gspo"), {}) == {
        "clip_low_threshold": 1 - 3e-4,
        "clip_high_threshold": 1 + 4e-4,
    }


@pytest.mark.parametrize(
    ("loss_fn", "config", "message"),
    [
        ("ppo", {"epsilon": 0.2}, "ppo has no option 'epsilon'; it has clip_low_threshold"),
        ("importance_sampling", {"beta": 1.0}, "it has none"),
        ("ppo", {"clip_low_threshold": "x"}, "clip_low_threshold is 'x'"),
        ("ppo", {"clip_low_threshold": float("nan")}, "not a finite number"),
        ("ppo", {"clip_low_threshold": True}, "is True"),
        ("ppo", {"clip_low_threshold": 2.0}, "are not 0 <= low <= high"),
        ("ppo", {"clip_low_threshold": -0.1}, "are not 0 <= low <= high"),
        ("cispo", {"clip_low_threshold": 5.0}, "are not 0 <= low <= high"),
        ("gspo", {"beta": 0.1}, "gspo has no option 'beta'"),
        ("dro", {"beta": -0.1}, "beta is -0.1, not at least 0"),
        ("dro", {"clip_low_threshold": 0.5}, "dro has no option 'clip_low_threshold'; it has beta"),
    ],
)
def test_a_bad_option_is_refused_by_name(
    loss_fn: str, config: dict[str, object], message: str
) -> None:
    with pytest.raises(BadRequest, match=message):
        fill_config(find_loss(loss_fn), config)


def test_an_unknown_loss_is_refused_with_those_there_are() -> None:
    with pytest.raises(BadRequest, match="unknown loss_fn 'dpo'; there are cross_entropy, "):
        find_loss("dpo")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["target_tokens", "mask"], "takes no input 'mask'"),
        (["weights"], "needs the input 'target_tokens'"),
    ],
)
def test_inputs_are_checked_by_name(names: list[str], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        check_inputs(LOSSES["cross_entropy"], names)


def test_an_input_with_a_default_may_be_missing() -> None:
    check_inputs(LOSSES["cross_entropy"], ["target_tokens"])
    assert LOSSES["cross_entropy"].inputs[1].default == 1.0
