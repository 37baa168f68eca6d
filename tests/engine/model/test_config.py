"""Reading `config.json`: what is taken, what is refused and by which name."""

import json
from pathlib import Path
from typing import Any

import pytest
from random_models import save_random_model

from weft.client.errors import BadRequest, NotFound
from weft.engine.model.config import MODULES, ModelConfig, decoder_site
from weft.engine.model.errors import NotBuilt

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
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"num_experts": 8}, "num_experts"),
        ({"logit_scale": 0.5}, "logit_scale"),
    ],
)
def test_another_computation_is_not_built_and_named(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(NotBuilt, match=named):
        ModelConfig.from_fields(FIELDS | fields)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"vocab_size": None}, "vocab_size"),
        ({"hidden_size": -1}, "hidden_size"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers"),
        ({"num_attention_heads": True}, "num_attention_heads"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"head_dim": 7}, "head_dim"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings"),
        ({"eos_token_id": "end"}, "eos_token_id"),
        ({"model_type": "qwen2", "attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
    ],
)
def test_a_wrong_field_is_refused_by_name_and_not_as_unbuilt(
    fields: dict[str, Any], named: str
) -> None:
    with pytest.raises(BadRequest, match=named) as refusal:
        ModelConfig.from_fields(FIELDS | fields)

    assert not isinstance(refusal.value, NotBuilt)


def test_key_heads_left_out_are_as_many_as_heads_in_a_llama_and_missing_elsewhere() -> None:
    fields = {key: value for key, value in FIELDS.items() if key != "num_key_value_heads"}

    assert ModelConfig.from_fields(fields | {"model_type": "llama"}).num_kv_heads == 4
    with pytest.raises(BadRequest, match="num_key_value_heads"):
        ModelConfig.from_fields(fields)


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
