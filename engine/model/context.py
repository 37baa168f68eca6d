"""How many tokens a sequence may have: as many as the full attention built here is right for."""

from collections.abc import Mapping

from ...client.errors import BadRequest
from .errors import NotBuilt
from .fields import count, flag
from .rope_config import RopeScaling, YarnScaling

_MISTRAL_WINDOW = 4096  # where a mistral states none; null means none
_QWEN_WINDOW, _QWEN_FULL_LAYERS = 4096, 28  # the same for qwen2 and qwen3 that use a window
_CHUNK_KEYS = {"chunk_size", "local_size", "original_max_position_embeddings"}


def read_context(fields: Mapping[str, object], scaling: RopeScaling | None) -> tuple[int, str]:
    """Read (tokens, why fewer than the model was made for) from the fields of a config.json.

    `max_position_embeddings`, or the stretched context of YaRN where that is longer. A sliding
    window or dual chunk attention is the same computation as full attention as long as a sequence
    fits into the window or the first chunk, so the context ends there.

    Raises:
        NotBuilt: a kind of attention that full attention never equals.
        BadRequest: the fields contradict each other or are no numbers.
    """
    tokens = count(fields, "max_position_embeddings")
    if isinstance(scaling, YarnScaling):
        tokens = max(tokens, int(scaling.factor * scaling.original_max_context))
    limits = {
        "a sliding window": _window(fields),
        "the first chunk of dual chunk attention": _first_chunk(fields),
    }
    note = ""
    for reason, limit in limits.items():
        if limit is not None and limit < tokens:
            note = f"{limit} of {tokens} tokens of context: beyond {reason} is not built here"
            tokens = limit
    return tokens, note


def _window(fields: Mapping[str, object]) -> int | None:
    """The window of any layer; None where every layer sees everything."""
    model_type, key = fields.get("model_type"), "sliding_window"
    types = _layer_types(fields)
    is_used = flag(fields, "use_sliding_window")
    if model_type in ("qwen2", "qwen3"):
        window = count(fields, key, _QWEN_WINDOW) if fields.get(key, 0) is not None else None
        if types is None:
            num_full = 0
            if fields.get("max_window_layers") != 0:
                num_full = count(fields, "max_window_layers", _QWEN_FULL_LAYERS)
            is_sliding = is_used and num_full < count(fields, "num_hidden_layers")
        else:
            is_sliding = "sliding_attention" in types
            if is_sliding and (window is None or not is_used):
                raise BadRequest(
                    "layer_types has 'sliding_attention', yet no sliding_window is used"
                )
        return window if is_sliding else None
    if types is not None and set(types) != {"full_attention"}:
        raise NotBuilt(f"layer_types of model_type {model_type!r} is not supported")
    if key not in fields and model_type == "mistral":
        return _MISTRAL_WINDOW
    if fields.get(key) is None:
        if is_used:
            raise BadRequest("use_sliding_window is true, yet there is no sliding_window")
        return None
    return count(fields, key)


def _layer_types(fields: Mapping[str, object]) -> list[str] | None:
    types = fields.get("layer_types")
    if not types:
        return None
    if not isinstance(types, list) or len(types) != count(fields, "num_hidden_layers"):
        raise BadRequest("layer_types is not a list with an entry for each layer")
    for layer_type in types:
        if layer_type not in ("full_attention", "sliding_attention"):
            raise NotBuilt(f"layer_types has {layer_type!r}, which is not supported")
    return types


def _first_chunk(fields: Mapping[str, object]) -> int | None:
    """Tokens whose keys all lie in the first chunk, where positions are plain.

    Source: An et al., "Training-Free Long-Context Scaling of Large Language Models", 2024,
    https://arxiv.org/abs/2402.17463: chunks are shorter than the window by the local part.
    """
    chunks = fields.get("dual_chunk_attention_config")
    if not chunks:
        return None
    if not isinstance(chunks, dict):
        raise BadRequest(f"dual_chunk_attention_config is {chunks!r}, not an object")
    if unknown := chunks.keys() - _CHUNK_KEYS:
        raise NotBuilt(f"{min(unknown)} in dual_chunk_attention_config is not supported")
    tokens = count(chunks, "chunk_size") - count(chunks, "local_size")
    if tokens <= 0:
        raise BadRequest("dual_chunk_attention_config has no chunk longer than its local_size")
    return tokens
