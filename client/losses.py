"""The loss functions: what each needs, and what may be configured.

The client refuses by this table before anything is sent, the engine when it arrives. Every loss is
a sum over tokens; position i of an input concerns the prediction of `target_tokens[i]`. Write lp
for the log-probability under the weights being trained, q for `logprobs` (the sampler's), A for
`advantages`, r = exp(lp - q), sg for "no gradient through this", clip for clip(., low, high):

    cross_entropy         -sum(weights * lp), or of K targets a position
                          -sum_i sum_k weights[i, k] * lp(target_tokens[i, k])
    importance_sampling   -sum(r * A)
    ppo                   -sum(min(r * A, clip(r) * A))
    cispo                 -sum(sg(clip(r)) * lp * A)
    dro                   -sum(lp * A - beta / 2 * (lp - q)**2)
    gspo                  -sum(min(s * A, clip(s) * A)), s = sg(exp(m)) * exp(lp - sg(lp)),
                          m the mean of lp - q over the tokens of the datum in the ratio

Bounds are of the ratio itself, not distances from 1. What the reference leaves open is defined here:

- dro: `beta` is 0.05, the value of the reference's example, and at least 0. The quadratic term acts
  where A is 0, too; a token whose advantage and sampling logprob are both exactly 0, which is how
  prompts are filled in, is not part of the loss.
- gspo: the ratio's tokens are those where `sequence_ratio_mask` is not 0. The bounds default to
  1 - 3e-4 and 1 + 4e-4; per-token inputs of the options' names replace them. A datum that has an
  advantage and no token in its ratio is refused, for it has no ratio.
- In all of them a token of weight or advantage 0 (dro: as above) has exactly no loss and gradient,
  and minus infinity or NaN elsewhere in a batch does not change that.

Sources: the documentation of the Tinker API, https://tinker-docs.thinkingmachines.ai/tinker/losses.
ppo: Schulman et al., "Proximal Policy Optimization Algorithms", 2017, equation 7. cispo: MiniMax,
"MiniMax-M1", 2025, section 3.1, https://arxiv.org/abs/2506.13585. dro: Richemond et al., "Offline
Regularised Reinforcement Learning for Large Language Models Alignment", 2024,
https://arxiv.org/abs/2405.19107. gspo: Zheng et al., "Group Sequence Policy Optimization", 2025,
the token-level variant of section 4.3 with the bounds of section 5.1,
https://arxiv.org/abs/2507.18071.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import NoneType

from .arguments import is_number, require_type, shown
from .errors import BadRequest


@dataclass(frozen=True, slots=True)
class LossInput:
    """One array of a datum, as long as its model input."""

    name: str
    dtype: str  # on the wire, "int32" or "float32"
    # Of every element when it is missing: a number, or the option that says; None: it is required.
    default: float | str | None = None


@dataclass(frozen=True, slots=True)
class Loss:
    """One loss function. On the wire every input is there, defaults filled in by the client."""

    name: str
    inputs: tuple[LossInput, ...]
    config: Mapping[str, float] = field(default_factory=dict[str, float])  # keys and defaults
    takes_soft_targets: bool = False  # several weighted targets a position


_TARGETS = LossInput("target_tokens", "int32")
_WEIGHTS = LossInput("weights", "float32", default=1.0)
_POLICY = (_TARGETS, LossInput("logprobs", "float32"), LossInput("advantages", "float32"))
_SEQUENCE = (
    *_POLICY,
    LossInput("sequence_ratio_mask", "float32"),
    LossInput("clip_low_threshold", "float32", default="clip_low_threshold"),
    LossInput("clip_high_threshold", "float32", default="clip_high_threshold"),
)


def _bounds(low: float, high: float) -> dict[str, float]:
    return {"clip_low_threshold": low, "clip_high_threshold": high}


LOSSES: dict[str, Loss] = {
    loss.name: loss
    for loss in (
        Loss("cross_entropy", (_TARGETS, _WEIGHTS), takes_soft_targets=True),
        Loss("importance_sampling", _POLICY),
        Loss("ppo", _POLICY, _bounds(0.8, 1.2)),
        Loss("cispo", _POLICY, _bounds(0.0, 4.0)),
        Loss("dro", _POLICY, {"beta": 0.05}),
        Loss("gspo", _SEQUENCE, _bounds(1 - 3e-4, 1 + 4e-4)),
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
        BadRequest: a key is unknown, a value is not a finite number, bounds cross, or beta < 0.
    """
    require_type("loss_fn_config", config, (Mapping, NoneType), "a mapping")
    filled = dict(loss.config)
    for key, value in (config or {}).items():
        if key not in filled:
            known = ", ".join(filled) or "none"
            raise BadRequest(f"{loss.name} has no option {key!r}; it has {known}")
        if not is_number(value):
            raise BadRequest(f"{loss.name}: {key} is {shown(value)}, not a finite number")
        filled[key] = float(value)
    low, high = filled.get("clip_low_threshold", 0.0), filled.get("clip_high_threshold", 0.0)
    if not 0 <= low <= high:
        raise BadRequest(
            f"{loss.name}: clip_low_threshold {low:g} and clip_high_threshold {high:g} "
            "are not 0 <= low <= high"
        )
    if filled.get("beta", 0.0) < 0:
        raise BadRequest(f"{loss.name}: beta is {filled['beta']:g}, not at least 0")
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
