"""Limits and end tokens of a hosted model."""

import json
from pathlib import Path
from typing import Any

import pytest
from hosted_models import own_module, save_family

from weft.client.errors import BadRequest
from weft.engine.hosted.facts import HostedFacts, read_facts


def facts_of(path: Path, kind: str, **fields: Any) -> HostedFacts:
    save_family(path, kind, **fields)
    return read_facts(own_module(path), path)


def test_sizes_are_read(tmp_path: Path) -> None:
    assert facts_of(tmp_path, "phi") == HostedFacts(
        model_type="phi",
        vocab_size=97,
        width=32,
        num_layers=2,
        max_context=256,
        eos_token_ids=(2,),
    )


def test_the_ends_of_generation_config_count(tmp_path: Path) -> None:
    save_family(tmp_path, "phi")
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 5]}))
    assert read_facts(own_module(tmp_path), tmp_path).eos_token_ids == (2, 5)


def test_a_model_that_states_no_context_has_one_and_says_so(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, "mamba2", max_position_embeddings=None)
    assert facts.max_context == 4096
    assert "none is stated" in facts.context_note


def test_longrope_ends_where_its_angles_would_depend_on_the_batch(tmp_path: Path) -> None:
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4,
        "original_max_position_embeddings": 64,
    }
    fields = {"rope_parameters": rope, "original_max_position_embeddings": 64}
    facts = facts_of(tmp_path, "phi3", **fields)
    assert facts.max_context == 64
    assert "64 of 256 tokens" in facts.context_note


def test_an_output_layer_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    module = own_module(save_family(tmp_path, "phi"))
    module.lm_head.weight.data = module.lm_head.weight.data[:90]
    with pytest.raises(BadRequest, match="knows 90 tokens and the embedding 97"):
        read_facts(module, tmp_path)
