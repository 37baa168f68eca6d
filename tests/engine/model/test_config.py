"""Reading `config.json`: what is taken, what is refused and by which name."""

import json
from pathlib import Path
from typing import Any

import pytest
from random_models import LLAMA3_ROPE, save_random_model

from weft.client.errors import BadRequest, NotFound
from weft.engine.model.config import MODULES, ModelConfig, RopeScaling, decoder_site

FIELDS: dict[str, Any] = {
    "model_type": "qwen3",
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
}


def test_sites_come_layer_by_layer_and_the_unembedding_last() -> None:
    config = ModelConfig.from_fields(FIELDS)

    sites = config.sites()

    assert [site.module for site in sites] == [*MODULES, *MODULES, "unembed"]
    assert sites[8] == decoder_site(layer=1, module="k", in_features=32, out_features=32)
    assert sites[-1] == decoder_site(layer=-1, module="unembed", in_features=32, out_features=97)
    assert [config.site_index(site.layer, site.module) for site in sites] == list(range(15))
    assert (sites[6].name, sites[-1].name) == ("model.layers.0.mlp.down_proj", "lm_head")


@pytest.mark.parametrize("kind", ["qwen3", "llama", "qwen2", "mistral"])
@pytest.mark.parametrize("is_tied", [False, True])
def test_the_parameter_count_is_that_of_transformers(
    tmp_path: Path, kind: str, is_tied: bool
) -> None:
    model = save_random_model(tmp_path, kind, is_tied=is_tied)

    config = ModelConfig.from_directory(tmp_path)

    assert config.num_parameters == sum(parameter.numel() for parameter in model.parameters())


def test_llama3_scaling_is_read_in_both_spellings() -> None:
    expected = RopeScaling(
        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_context=64
    )
    old = {key: value for key, value in LLAMA3_ROPE.items() if key != "rope_theta"}

    new = ModelConfig.from_fields(FIELDS | {"rope_parameters": LLAMA3_ROPE})
    older = ModelConfig.from_fields(FIELDS | {"rope_scaling": old, "rope_theta": 5e5})

    assert (new.rope_scaling, new.rope_theta) == (expected, 10000.0)
    assert (older.rope_scaling, older.rope_theta) == (expected, 5e5)


def test_end_tokens_of_the_generation_config_count(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(FIELDS | {"eos_token_id": 1}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 5]}))

    assert ModelConfig.from_directory(tmp_path).eos_token_ids == (1, 5)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"model_type": "gpt2"}, "gpt2"),
        ({"model_type": None}, "model_type"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"attention_dropout": 0.1}, "attention_dropout"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "linear"),
        ({"rope_scaling": "llama3"}, "rope_scaling"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"rope_scaling": LLAMA3_ROPE | {"high_freq_factor": 1.0}}, "high_freq_factor"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "factor"),
        ({"use_sliding_window": True, "sliding_window": 64}, "sliding_window"),
        ({"model_type": "mistral"}, "sliding_window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"num_experts": 8}, "num_experts"),
        ({"logit_scale": 0.5}, "logit_scale"),
        ({"vocab_size": None}, "vocab_size"),
        ({"hidden_size": -1}, "hidden_size"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers"),
        ({"num_attention_heads": True}, "num_attention_heads"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"head_dim": 7}, "head_dim"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings"),
        ({"eos_token_id": "end"}, "eos_token_id"),
    ],
)
def test_what_would_change_the_computation_is_refused_by_name(
    fields: dict[str, Any], named: str
) -> None:
    with pytest.raises(BadRequest, match=named):
        ModelConfig.from_fields(FIELDS | fields)


def test_keys_that_ask_for_nothing_are_accepted() -> None:
    idle = {"sliding_window": 4096, "use_cache": True, "quantization_config": None, "is_moe": False}

    assert ModelConfig.from_fields(FIELDS | idle) == ModelConfig.from_fields(FIELDS)


def test_a_missing_directory_or_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nowhere"):
        ModelConfig.from_directory(tmp_path / "nowhere")
    with pytest.raises(NotFound, match=r"config\.json"):
        ModelConfig.from_directory(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_a_damaged_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))

    with pytest.raises(BadRequest, match=r"config\.json"):
        ModelConfig.from_directory(tmp_path)
