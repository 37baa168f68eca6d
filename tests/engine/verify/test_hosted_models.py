"""Verifications of models that run through transformers' own code."""

from pathlib import Path
from typing import Any

import pytest
from transformers import FalconH1Config, Gemma2Config, Lfm2Config
from whole_models import END_OF_TEXT, VOCABULARY, edit_tensor, save_whole_hosted, save_whole_model

from weft.engine.verify.record import Check
from weft.engine.verify.run import VerifyConfig, verify

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": END_OF_TEXT,
    "pad_token_id": None,
}
GEMMA2 = Gemma2Config(**SIZES, head_dim=16, query_pre_attn_scalar=16, sliding_window=32)
LFM2 = Lfm2Config(**SIZES, layer_types=["conv", "full_attention"])
FALCON_H1 = FalconH1Config(
    **SIZES, head_dim=16, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8
)


def table(path: Path, **fields: Any) -> dict[str, Check]:
    config = VerifyConfig(model=str(path), device="cpu", **fields)
    return {check.name: check for check in verify(config, lambda check: None)}


@pytest.mark.parametrize(
    ("config", "runs_on"),
    [
        pytest.param(GEMMA2, "packed", id="gemma2: windows, capped logits"),
        pytest.param(LFM2, "sequential", id="lfm2: convolutions"),
    ],
)
def test_a_model_of_transformers_passes_in_every_row(
    tmp_path: Path, config: Any, runs_on: str
) -> None:
    save_whole_hosted(tmp_path, config)

    rows = table(tmp_path)

    assert {check.status for check in rows.values()} == {"PASS"}
    assert "by transformers" in rows["config"].figure
    assert rows["model"].figure == f"runs on {runs_on}"


def test_what_peft_refuses_is_compared_with_plain_autograd_and_told(tmp_path: Path) -> None:
    save_whole_hosted(tmp_path, FALCON_H1)

    check = table(tmp_path)["gradients"]

    assert check.status == "PASS"
    assert "adapters added by hooks" in check.detail
    assert "peft refuses" in check.detail


def test_our_own_families_can_be_verified_in_the_code_of_transformers(tmp_path: Path) -> None:
    save_whole_model(tmp_path)

    rows = table(tmp_path, modelling="transformers")

    assert {check.status for check in rows.values()} == {"PASS"}
    assert rows["model"].figure == "runs on packed"


def test_a_missing_tensor_fails_where_the_model_is_opened(tmp_path: Path) -> None:
    save_whole_hosted(tmp_path, LFM2)
    edit_tensor(tmp_path, "model.embedding_norm.weight", lambda tensor: None)

    rows = table(tmp_path)

    assert [check.name for check in rows.values() if check.status == "FAIL"] == ["model"]
    assert "lacks tensors (1): model.embedding_norm.weight" in rows["model"].detail
    assert rows["logits"].status == "SKIP"
