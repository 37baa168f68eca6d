"""What a checkpoint's JSON files say, before any weight is read."""

from dataclasses import dataclass
from pathlib import Path

from ..hosted.checkpoint import read_config
from ..model.config import ModelConfig
from ..model.fields import read_json, token_ids
from ..worker.base_models import why_not_native
from .record import Check, passed


@dataclass(frozen=True, slots=True)
class Facts:
    """Sizes and ends, and which modelling code they are for."""

    native: ModelConfig | None  # None: for transformers' modelling code
    reason: str  # why not for our own; "" where it is
    model_type: str
    vocab_size: int
    config_ends: tuple[int, ...]
    generation_ends: tuple[int, ...] | None  # None: no generation_config.json that says


def read_facts(directory: Path, modelling: str) -> Facts:
    """Read config.json and generation_config.json.

    Args:
        modelling: as of `WorkerConfig`; "transformers" leaves our own decoder out.

    Raises:
        NotFound, BadRequest: a file is missing, damaged, or for no causal language model.
    """
    fields = read_json(directory / "config.json")
    reason = why_not_native(directory, modelling)
    native = None if reason else ModelConfig.from_directory(directory)
    if native is not None:
        model_type, vocab_size = native.model_type, native.vocab_size
    else:
        config = read_config(directory)
        model_type = str(config.model_type)
        text = config.get_text_config(decoder=True)
        vocab_size = int(text.vocab_size)
        fields.setdefault("eos_token_id", getattr(text, "eos_token_id", None))
    ends = None
    if (directory / "generation_config.json").is_file():
        stated = read_json(directory / "generation_config.json")
        ends = token_ids(stated, "eos_token_id") or None
    return Facts(native, reason, model_type, vocab_size, token_ids(fields, "eos_token_id"), ends)


def check_config(facts: Facts) -> Check:
    """config.json is understood, by our own decoder or by transformers."""
    config = facts.native
    if config is None:
        return passed(
            "config", f"{facts.model_type}, by transformers", f"not by our own: {facts.reason}"
        )
    scaling = type(config.rope_scaling).__name__ if config.rope_scaling else "no rotary scaling"
    biases = [name for name in ("qkv", "o", "mlp") if getattr(config, f"has_{name}_bias")]
    detail = (
        f"{config.num_layers} layers, width {config.width}, {config.num_heads} heads of "
        f"{config.head_dim} over {config.num_kv_heads}, {scaling}"
    )
    if biases:
        detail += f", biases on {', '.join(biases)}"
    return passed("config", f"{facts.model_type}, native, context {config.max_context}", detail)
