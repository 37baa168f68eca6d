"""The longest sequence: stretched by YaRN, cut where attention would stop being full."""

from typing import Any

import pytest

from weft.client.errors import BadRequest
from weft.engine.model.context import read_context
from weft.engine.model.errors import NotBuilt
from weft.engine.model.rope_config import LinearScaling, YarnScaling

FULL, SLIDING = "full_attention", "sliding_attention"
USED = {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}
CHUNKS = {"chunk_size": 48, "local_size": 16, "original_max_position_embeddings": 48}


def context(kind: str = "qwen3", **fields: Any) -> int:
    stated = {"model_type": kind, "max_position_embeddings": 256, "num_hidden_layers": 2}
    tokens, note = read_context(stated | fields, None)
    assert bool(note) == (tokens < 256)
    return tokens


def yarn(factor: float, original: int) -> YarnScaling:
    return YarnScaling(factor=factor, original_max_context=original, attention_factor=1.0)


@pytest.mark.parametrize(
    ("kind", "fields", "expected"),
    [
        ("mistral", {}, 256),  # 4096, as it says nothing
        ("mistral", {"sliding_window": None}, 256),
        ("mistral", {"sliding_window": 64}, 64),
        ("mistral", {"sliding_window": 64, "use_sliding_window": False}, 64),
        ("llama", {}, 256),
        ("llama", {"sliding_window": 64}, 64),
        ("qwen2", {"sliding_window": 64}, 256),
        ("qwen2", USED, 64),
        ("qwen2", USED | {"max_window_layers": 2}, 256),
        ("qwen3", USED | {"max_window_layers": 0}, 64),
        ("qwen3", USED | {"sliding_window": None}, 256),
        ("qwen3", USED | {"layer_types": [FULL, FULL]}, 256),
        ("qwen3", USED | {"layer_types": [SLIDING, FULL], "max_window_layers": 2}, 64),
        ("qwen2", {"dual_chunk_attention_config": CHUNKS}, 32),
        ("qwen2", {"dual_chunk_attention_config": CHUNKS} | USED, 32),
    ],
)
def test_the_context_ends_with_the_window_of_any_layer(
    kind: str, fields: dict[str, Any], expected: int
) -> None:
    assert context(kind, **fields) == expected


def test_a_mistral_without_a_word_has_a_window_of_4096() -> None:
    assert (
        read_context({"model_type": "mistral", "max_position_embeddings": 32768}, None)[0] == 4096
    )


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [(yarn(4.0, 256), 1024), (yarn(4.0, 32), 256), (LinearScaling(factor=4.0), 256), (None, 256)],
)
def test_only_yarn_makes_the_context_longer(scaling: Any, expected: int) -> None:
    fields = {"model_type": "qwen3", "max_position_embeddings": 256, "num_hidden_layers": 2}

    assert read_context(fields, scaling) == (expected, "")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"layer_types": [FULL, "chunked_attention"]}, "chunked_attention"),
        ({"kind": "llama", "layer_types": [FULL, SLIDING]}, "llama"),
        ({"dual_chunk_attention_config": CHUNKS | {"sparse": True}}, "sparse"),
    ],
)
def test_attention_that_is_never_full_is_not_built(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(NotBuilt, match=named):
        context(**fields)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"layer_types": [FULL, SLIDING]}, "no sliding_window"),
        ({"layer_types": [FULL]}, "layer_types"),
        ({"layer_types": "full_attention"}, "layer_types"),
        ({"kind": "llama", "use_sliding_window": True}, "use_sliding_window"),
        (USED | {"sliding_window": -1}, "sliding_window"),
        ({"dual_chunk_attention_config": [48]}, "dual_chunk_attention_config"),
        ({"dual_chunk_attention_config": CHUNKS | {"local_size": 48}}, "local_size"),
    ],
)
def test_a_contradiction_is_refused_and_not_as_unbuilt(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(BadRequest, match=named) as refusal:
        context(**fields)

    assert not isinstance(refusal.value, NotBuilt)
