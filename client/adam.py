"""The ranges of an optimizer step's parameters, for whoever asks for one and whoever takes it."""

from math import inf

from .arguments import is_number, require_type, shown
from .errors import BadRequest
from .messages import OptimStep
from .types import AdamParams

_UPPER = {  # excluded; all begin at 0
    "learning_rate": inf,
    "beta1": 1.0,
    "beta2": 1.0,
    "eps": inf,
    "weight_decay": inf,
    "grad_clip_norm": inf,
}


def check_adam(params: AdamParams | OptimStep) -> None:
    """Refuse parameters that AdamW cannot take.

    Raises:
        BadRequest: naming the first field that is out of its range.
    """
    require_type("optim_params", params, (AdamParams, OptimStep), "AdamParams")
    for name, high in _UPPER.items():
        value = getattr(params, name)
        if not is_number(value) or not 0 <= value < high:
            raise BadRequest(f"{name} is {shown(value)}, not a number in [0, {high:g})")
