"""The loss functions: what each needs, and what may be configured.

The client refuses by this table before anything is sent, the engine when it arrives. Every loss is
a sum over tokens; position i of an input concerns the prediction of `target_tokens[i]`. With
r = exp(lp - logprobs), lp the log-probability under the weights being trained:

    cross_entropy         -sum(weights * lp)
    importance_sampling   -sum(r * advantages)
    ppo                   -sum(min(r * advantages, clip(r, low, high) * advantages))

Source: the documentation of the Tinker API, https://tinker-docs.thinkingmachines.ai.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import isfinite

from .errors import BadRequest


@dataclass(frozen=True, slots=True)
class LossInput:
    """One array of a datum, as long as its model input."""

    name: str
    dtype: str  # on the wire, "int32" or "float32"
    default: float | None = None  # of every element when it is missing; None: it is required


@dataclass(frozen=True, slots=True)
class Loss:
    """One loss function. On the wire every input is there, defaults filled in by the client."""

    name: str
    inputs: tuple[LossInput, ...]
    config: Mapping[str, float] = field(default_factory=dict[str, float])  # keys and defaults


_TARGETS = LossInput("target_tokens", "int32")
_POLICY = (_TARGETS, LossInput("logprobs", "float32"), LossInput("advantages", "float32"))

LOSSES: dict[str, Loss] = {
    loss.name: loss
    for loss in (
        Loss("cross_entropy", (_TARGETS, LossInput("weights", "float32", default=1.0))),
        Loss("importance_sampling", _POLICY),
        # Bounds of the ratio itself, not distances from 1.
        Loss("ppo", _POLICY, {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}),
    )
}


def find_loss(name: str) -> Loss:
    """Look up a loss function.

    Raises:
        BadRequest: there is none of that name.
    """
    loss = LOSSES.get(name)
    if loss is None:
        raise BadRequest(f"unknown loss_fn {name!r}; there are {', '.join(LOSSES)}")
    return loss


def fill_config(loss: Loss, config: Mapping[str, object] | None) -> dict[str, float]:
    """All keys of a loss function's configuration, defaults filled in.

    Raises:
        BadRequest: a key is unknown, a value is not a finite number, or ppo's bounds cross.
    """
    filled = dict(loss.config)
    for key, value in (config or {}).items():
        if key not in filled:
            known = ", ".join(filled) or "none"
            raise BadRequest(f"{loss.name} has no option {key!r}; it has {known}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
            raise BadRequest(f"{loss.name}: {key} is {value!r}, not a finite number")
        filled[key] = float(value)
    low, high = filled.get("clip_low_threshold", 0.0), filled.get("clip_high_threshold", 0.0)
    if not 0 <= low <= high:
        raise BadRequest(
            f"{loss.name}: clip_low_threshold {low:g} and clip_high_threshold {high:g} "
            "are not 0 <= low <= high"
        )
    return filled


def check_inputs(loss: Loss, names: Iterable[str]) -> None:
    """Refuse inputs that a loss function does not take, and miss those that it needs.

    Raises:
        BadRequest: naming the first such input.
    """
    given = set(names)
    known = {item.name for item in loss.inputs}
    for name in sorted(given - known):
        raise BadRequest(
            f"{loss.name} takes no input {name!r}; it takes {', '.join(sorted(known))}"
        )
    for item in loss.inputs:
        if item.default is None and item.name not in given:
            raise BadRequest(f"{loss.name} needs the input {item.name!r}")
