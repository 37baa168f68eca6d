"""PEFT's adapter_config.json: what is written, and what is accepted.

Read closed: whatever would change what the adapter computes, or how it came about, and cannot be
honoured here is refused by name, and so is a key that nobody here has heard of unless it is off.
Source: `LoraConfig` of peft 0.21 and the files it writes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, sqrt
from typing import Any

from ...client.errors import BadRequest
from ...client.limits import limit
from .checkpoint import Checkpoint

# Says nothing about what the adapter computes.
_IDLE = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "inference_mode",
        "layers_pattern",  # only with layers_to_transform
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
    }
)
_REFUSED = {
    "alora_invocation_tokens": "adapters that wait for a token are not served",
    "arrow_config": "routed adapters are not served",
    "corda_config": "it changes the base weights",
    "ensure_weight_tying": "adapters of embeddings are not served",
    "eva_config": "its start depends on data",
    "exclude_modules": "name the modules in target_modules",
    "fan_in_fan_out": "transposed base weights are not served",
    "kasa_config": "KaSA is not served",
    "layer_replication": "repeated layers are not served",
    "layers_to_transform": "an adapter covers all layers",
    "loftq_config": "it changes the base weights",
    "lora_bias": "biases are not trained",
    "lora_ga_config": "it changes the base weights",
    "megatron_config": "Megatron's layers are not served",
    "modules_to_save": "whole modules are not trained",
    "monteclora_config": "MonteCLoRA is not served",
    "target_parameters": "adapters of bare parameters are not served",
    "trainable_token_indices": "adapters of embeddings are not served",
    "use_bdlora": "block-diagonal LoRA is not served",
    "use_dora": "DoRA is not served",
    "use_qalora": "QALoRA is not served",
    "velora_config": "VeLoRA is not served",
}
_PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal")  # they leave the base as it is


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """What an adapter's config says, as far as it matters here."""

    rank: int
    alpha: float  # so that the scale is alpha / rank
    targets: tuple[str, ...] | None  # names or ends of names; None: whatever the tensors say


def write_config(record: Checkpoint, targets: Sequence[str], base_model: str) -> bytes:
    """The adapter_config.json of a saved state."""
    alpha = int(record.alpha) if record.alpha == int(record.alpha) else record.alpha
    fields: dict[str, Any] = {
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": base_model or record.base_model,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": record.rank,
        "rank_pattern": {},
        "revision": None,
        "target_modules": sorted(targets),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    return (json.dumps(fields, indent=2) + "\n").encode()


def read_config(raw: bytes, ignore_dropout: bool = False) -> PeftConfig:
    """Read an adapter_config.json.

    Args:
        raw: the file.
        ignore_dropout: accept a `lora_dropout` although training here has none.

    Raises:
        BadRequest: not JSON, a value out of its range, or something that is not served, by name.
    """
    fields = _parse(raw)
    for key, value in fields.items():
        if key in _REFUSED and value:
            raise _refusal(key, value, _REFUSED[key])
        if key not in _KNOWN and value:
            raise _refusal(key, value, "it is not known here")
    _expect(fields, "peft_type", ("LORA",))
    _expect(fields, "task_type", ("CAUSAL_LM", None))
    _expect(fields, "bias", ("none", None))
    _expect(fields, "use_rslora", (True, False, None))
    start = fields.get("init_lora_weights")
    if start not in _PLAIN_STARTS:
        raise _refusal("init_lora_weights", start, "it changes the base weights")
    rank = fields.get("r")
    if type(rank) is not int or not 1 <= rank <= limit("rank"):
        raise _refusal("r", rank, f"a rank is 1 to {limit('rank')}")
    alpha = _number(fields, "lora_alpha", fields.get("lora_alpha"))
    if alpha <= 0:
        raise _refusal("lora_alpha", alpha, "it must be positive")
    dropout = _number(fields, "lora_dropout", fields.get("lora_dropout") or 0)
    if dropout and not ignore_dropout:
        raise _refusal(
            "lora_dropout", dropout, "training here has none; ignore_dropout=True accepts that"
        )
    _expect_same(fields, "rank_pattern", rank)
    _expect_same(fields, "alpha_pattern", alpha)
    scale = sqrt(rank) if fields.get("use_rslora") else 1.0
    return PeftConfig(rank, alpha * scale, _targets(fields.get("target_modules")))


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        fields: Any = json.loads(raw, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"adapter_config.json is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise BadRequest("adapter_config.json is not a map")
    return fields


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("it repeats a key")
    return fields


def _targets(value: Any) -> tuple[str, ...] | None:
    """Target modules as a list; an expression over names has been evaluated by whoever saved."""
    if value is None or isinstance(value, str):
        return None
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise _refusal("target_modules", value, "it is neither a list of names nor an expression")
    for name in value:
        if name.rpartition(".")[2] in ("embed_tokens", "wte", "embeddings", "embedding"):
            raise _refusal("target_modules", name, "adapters of embeddings are not served")
    return tuple(value)


def _expect(fields: Mapping[str, Any], key: str, accepted: tuple[Any, ...]) -> None:
    value = fields.get(key)
    if value not in accepted:
        names = ", ".join(repr(known) for known in accepted if known is not None)
        raise _refusal(key, value, f"it must be {names}")


def _expect_same(fields: Mapping[str, Any], key: str, value: float) -> None:
    pattern = fields.get(key) or {}
    if not isinstance(pattern, dict) or any(own != value for own in pattern.values()):
        raise _refusal(key, pattern, "all modules of an adapter have one rank and one alpha")


def _number(fields: Mapping[str, Any], key: str, value: Any) -> float:
    if type(value) not in (int, float) or abs(value) > 1e30 or not isfinite(value):
        raise _refusal(key, value, "it must be a finite number")
    return float(value)


def _refusal(key: str, value: Any, why: str) -> BadRequest:
    shown = json.dumps(value, default=str)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return BadRequest(f"adapter_config.json has {key} {shown}: {why}")


_KNOWN = (
    frozenset(_REFUSED)
    | _IDLE
    | frozenset(
        {
            "alpha_pattern",
            "bias",
            "init_lora_weights",
            "lora_alpha",
            "lora_dropout",
            "peft_type",
            "r",
            "rank_pattern",
            "target_modules",
            "task_type",
            "use_rslora",
        }
    )
)
