"""Reading rotary scalings: both spellings, defaults, and what is refused."""

import math
from typing import Any

import pytest
from rope_examples import LLAMA3, ROPES, YARN

from weft.client.errors import BadRequest
from weft.engine.model.errors import NotBuilt
from weft.engine.model.rope_config import LinearScaling, Llama3Scaling, YarnScaling, read_rope

FIELDS: dict[str, Any] = {"max_position_embeddings": 256}


@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES.keys())
@pytest.mark.parametrize("kind", ["rope_type", "type"])
def test_both_spellings_say_the_same(rope: dict[str, Any], kind: str) -> None:
    inside = {key: value for key, value in rope.items() if key not in ("rope_theta", "rope_type")}
    older = {"rope_scaling": {kind: rope["rope_type"], **inside}, "rope_theta": rope["rope_theta"]}

    assert read_rope(FIELDS | older) == read_rope(FIELDS | {"rope_parameters": rope})


def test_every_number_of_a_scaling_is_taken() -> None:
    betas = {"beta_fast": 8, "beta_slow": 2, "truncate": False, "attention_factor": 0.7}

    assert read_rope(FIELDS | {"rope_parameters": LLAMA3}) == (
        5e5,
        Llama3Scaling(
            factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_context=64
        ),
    )
    assert read_rope(FIELDS | {"rope_parameters": YARN | betas})[1] == YarnScaling(
        factor=4.0,
        original_max_context=64,
        attention_factor=0.7,
        beta_fast=8.0,
        beta_slow=2.0,
        is_truncated=False,
    )
    linear = {"rope_scaling": {"type": "linear", "factor": 4}}
    assert read_rope(FIELDS | linear) == (10000.0, LinearScaling(factor=4.0))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, 0.1 * math.log(4) + 1),
        ({"factor": 0.5}, 1.0),
        ({"mscale": 0.7}, 0.1 * math.log(4) + 1),
        ({"mscale": 2.0, "mscale_all_dim": 1.0}, (0.2 * math.log(4) + 1) / (0.1 * math.log(4) + 1)),
    ],
)
def test_the_attention_factor_follows_from_the_stretching(
    fields: dict[str, Any], expected: float
) -> None:
    scaling = read_rope(FIELDS | {"rope_parameters": YARN | fields})[1]

    assert isinstance(scaling, YarnScaling)
    assert scaling.attention_factor == pytest.approx(expected)


def test_the_original_context_beside_the_parameters_goes_first() -> None:
    fields = {"rope_parameters": LLAMA3, "original_max_position_embeddings": 32}

    scaling = read_rope(FIELDS | fields)[1]

    assert isinstance(scaling, Llama3Scaling)
    assert scaling.original_max_context == 32


@pytest.mark.parametrize(
    ("rope", "named"),
    [
        ({"rope_type": "longrope", "factor": 4.0}, "longrope"),
        ({"rope_type": ["yarn"]}, "yarn"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"type": "linear", "factor": 2.0, "alpha": 2.0}, "alpha"),
        ({"full_attention": {"rope_type": "default"}}, "full_attention"),
    ],
)
def test_another_scaling_is_not_built_and_named(rope: dict[str, Any], named: str) -> None:
    with pytest.raises(NotBuilt, match=named):
        read_rope(FIELDS | {"rope_parameters": rope})


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"rope_scaling": "llama3"}, "rope_scaling"),
        ({"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}}, "high_freq_factor"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "factor"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor"),
        ({"rope_theta": "large"}, "rope_theta"),
    ],
)
def test_a_wrong_number_is_refused_and_not_as_unbuilt(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(BadRequest, match=named) as refusal:
        read_rope(FIELDS | fields)

    assert not isinstance(refusal.value, NotBuilt)
