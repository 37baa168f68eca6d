"""A first learning rate for LoRA, by the rule that was published for two families of models."""

from .arguments import require_type
from .errors import BadRequest
from .types import ModelData, SupportedModel

_FULL_RATE = 5e-5  # for full fine-tuning at the reference width
_LORA_FACTOR = 10.0
_REFERENCE_WIDTH = 2000.0
_POWERS = {"llama": 0.781, "qwen": 0.0775}


def lora_learning_rate(model: ModelData | SupportedModel, *, like: str | None = None) -> float:
    """The learning rate to try first, whatever the rank.

        5e-5 * 10 * (2000 / width) ** power

    The power was fitted to two families: 0.0775 for Qwen, 0.781 for Llama. For other models there
    is no published one, and nothing is guessed: say which family to take it from.

    Args:
        model: of `get_info().model_data` or `get_server_capabilities()`, or
            `ModelData(model_type="llama", width=4096)`.
        like: "qwen" or "llama", whose power is taken; None goes by the model's type.

    Raises:
        BadRequest: the width is not known, or no power fits the model's type.

    Source: the documentation of the Tinker API on learning rates for LoRA; that the rank does not
    matter: Schulman et al., "LoRA Without Regret", 2025, https://thinkingmachines.ai/blog/lora/.
    """
    require_type("model", model, (ModelData, SupportedModel), "ModelData or a SupportedModel")
    if model.width < 1:
        raise BadRequest(f"the width of {model.model_name or 'the model'} is not known")
    if like is not None and like not in _POWERS:
        raise BadRequest(f"like is {like!r}, not one of {', '.join(_POWERS)}")
    family = like or next((name for name in _POWERS if model.model_type.startswith(name)), None)
    if family is None:
        choices = " or ".join(
            f"like={name!r} ({_rate(model.width, power):.2g})" for name, power in _POWERS.items()
        )
        raise BadRequest(
            f"no learning rate is published for models of type {model.model_type!r}; try {choices}"
        )
    return _rate(model.width, _POWERS[family])


def _rate(width: int, power: float) -> float:
    return float(_FULL_RATE * _LORA_FACTOR * (_REFERENCE_WIDTH / width) ** power)
