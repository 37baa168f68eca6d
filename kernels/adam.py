"""AdamW over the parameters of many adapters at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class AdamSettings:
    """Hyper-parameters of one step; equal ones share a launch."""

    learning_rate: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float  # decoupled


@dataclass(frozen=True, slots=True)
class AdamTensors:
    """Flat fp32 tensors of one adapter."""

    weight: Tensor
    gradient: Tensor
    moment1: Tensor
    moment2: Tensor
    step: int  # the number of this step, from 1
    gradient_scale: float = 1.0  # the gradient is multiplied by it first


def adamw_(items: Sequence[AdamTensors], settings: Sequence[AdamSettings]) -> None:
    """Step every adapter in place, in one pass over its memory.

    One launch for all adapters whose settings are equal: their number is bounded by the number of
    different settings. The same with `torch._foreach_*` operations, which take settings per adapter
    in one launch, makes nine passes: 20 M parameters take 40 ms instead of 10 (one thread).

    All memory is taken before the first write: when it is not there, nothing has changed.

    Args:
        items: the adapters.
        settings: of each.
    """
    groups: dict[AdamSettings, list[AdamTensors]] = {}
    for item, chosen in zip(items, settings, strict=True):
        groups.setdefault(chosen, []).append(item)
    steps = {
        chosen: torch.tensor(
            [float(member.step) for member in members], device=members[0].weight.device
        )
        for chosen, members in groups.items()
    }
    scaled = [item for item in items if item.gradient_scale != 1]
    if scaled:
        torch._foreach_mul_(
            [item.gradient for item in scaled], [item.gradient_scale for item in scaled]
        )
    for chosen, members in groups.items():
        torch._fused_adamw_(
            [member.weight for member in members],
            [member.gradient for member in members],
            [member.moment1 for member in members],
            [member.moment2 for member in members],
            [],
            list(steps[chosen].unbind()),
            lr=chosen.learning_rate,
            beta1=chosen.beta1,
            beta2=chosen.beta2,
            weight_decay=chosen.weight_decay,
            eps=chosen.eps,
            amsgrad=False,
            maximize=False,
        )
