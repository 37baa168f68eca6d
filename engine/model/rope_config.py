"""Which rotary positions a checkpoint asks for: the base and the scaling of its frequencies.

Both spellings are read: `rope_parameters` and, older, `rope_scaling` beside `rope_theta`.

Source of the formulas and defaults: transformers, `modeling_rope_utils.py`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ...client.errors import BadRequest
from .errors import NotBuilt
from .fields import count, flag, positive

_KEYS: dict[str, set[str]] = {  # beside rope_theta and the type
    "default": set(),
    "linear": {"factor"},
    "dynamic": {"factor"},
    "llama3": {
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    },
    "yarn": {
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
        "finetuned",  # says how the model was trained
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearScaling:
    """Every frequency is divided by `factor`."""

    factor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama3Scaling:
    """Scaling of Llama 3.1: long wavelengths are stretched by `factor`, short ones kept."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_context: int  # tokens of pretraining

    def __post_init__(self) -> None:
        if self.high_freq_factor <= self.low_freq_factor:
            raise BadRequest(
                f"high_freq_factor {self.high_freq_factor} is not above "
                f"low_freq_factor {self.low_freq_factor}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class YarnScaling:
    """Stretching by the number of turns a pair makes in the original context, and a temperature.

    Pairs of more than `beta_fast` turns are kept, of fewer than `beta_slow` divided by `factor`.

    Source: Peng et al., "YaRN", 2023, https://arxiv.org/abs/2309.00071.
    """

    factor: float
    original_max_context: int  # tokens of pretraining
    attention_factor: float  # cosines and sines are multiplied by it
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    is_truncated: bool = True  # the bounds of the ramp are whole pairs


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling


def read_rope(fields: Mapping[str, object]) -> tuple[float, RopeScaling | None]:
    """Read (theta, scaling) from the fields of a config.json.

    Dynamic scaling starts to stretch beyond `max_position_embeddings`, by an amount that depends
    on the longest sequence of a batch; the context ends there, and within it nothing is scaled.

    Raises:
        NotBuilt: another type of scaling, or a key of a type that is not used here.
        BadRequest: a key is missing or no number.
    """
    rope = fields.get("rope_scaling") or fields.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise BadRequest(f"rope_scaling is {rope!r}, not an object")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if not isinstance(kind, str) or kind not in _KEYS:
        raise NotBuilt(f"rope_type {kind!r} is not supported, only {', '.join(_KEYS)}")
    for key in rope.keys() - {"rope_theta", "rope_type", "type"} - _KEYS[kind]:
        if not (key == "partial_rotary_factor" and rope[key] == 1.0):
            raise NotBuilt(f"{key} in the rope parameters of type {kind!r} is not supported")
    theta = positive(rope, "rope_theta", positive(fields, "rope_theta", 10000.0))
    return theta, _scaling(kind, rope, fields)


def _scaling(
    kind: str, rope: Mapping[str, object], fields: Mapping[str, object]
) -> RopeScaling | None:
    if kind in ("linear", "dynamic"):
        factor = positive(rope, "factor")
        return LinearScaling(factor=factor) if kind == "linear" else None
    if kind == "llama3":
        return Llama3Scaling(
            factor=positive(rope, "factor"),
            low_freq_factor=positive(rope, "low_freq_factor"),
            high_freq_factor=positive(rope, "high_freq_factor"),
            original_max_context=_original_context(rope, fields),
        )
    if kind == "yarn":
        original = _original_context(rope, fields)
        ratio = count(fields, "max_position_embeddings") / original
        factor = positive(rope, "factor", ratio if "factor" in rope else None)
        return YarnScaling(
            factor=factor,
            original_max_context=original,
            attention_factor=_attention_factor(rope, factor),
            beta_fast=positive(rope, "beta_fast", 32.0),
            beta_slow=positive(rope, "beta_slow", 1.0),
            is_truncated=flag(rope, "truncate", True),
        )
    return None


def _original_context(rope: Mapping[str, object], fields: Mapping[str, object]) -> int:
    """Stated beside the rope parameters, among them, or nowhere: then no stretching is meant."""
    longest = count(fields, "max_position_embeddings")
    inside = count(rope, "original_max_position_embeddings", longest)
    return count(fields, "original_max_position_embeddings", inside)


def _attention_factor(rope: Mapping[str, object], factor: float) -> float:
    def temperature(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if rope.get("mscale") and rope.get("mscale_all_dim"):
        default = temperature(positive(rope, "mscale"))
        default /= temperature(positive(rope, "mscale_all_dim"))
    else:
        default = temperature(1.0)
    return positive(rope, "attention_factor", default)
