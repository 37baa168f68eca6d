"""Loading: which way a model runs, what is refused, and that our own families come out the same."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hosted_models import own_module, save_family
from hosted_steps import Unit, gradients, make_run, make_store, train_step
from random_models import LLAMA3_ROPE, save_random_model
from torch import nn

from weft.client.errors import BadRequest
from weft.engine.hosted import load as loading
from weft.engine.hosted.load import load_hosted
from weft.engine.model.base import BaseModel
from weft.engine.model.decoder import Decoder


def test_llama_equals_our_own_decoder(tmp_path: Path) -> None:
    save_random_model(tmp_path, "llama", rope_parameters=LLAMA3_ROPE)
    results: list[dict[str, torch.Tensor]] = []
    models: list[BaseModel] = [Decoder.load(tmp_path), load_hosted(tmp_path)]
    for model in models:
        store = make_store(model)
        runs = [make_run(store, rank, rank, ("attn", "mlp", "unembed")) for rank in (1, 8)]
        units = [Unit.random(run, length, 0) for run in runs for length in (5, 30)]
        found = {"logprobs": torch.cat(train_step(model, store, units))}
        for run in runs:
            matrices = gradients(store, run).items()
            found |= {f"{name} of rank {run.rank}": matrix for name, matrix in matrices}
        results.append(found)
    own, hosted = results
    assert own.keys() == hosted.keys()
    for name, expected in own.items():  # float32, another order of summation
        torch.testing.assert_close(hosted[name], expected, rtol=1e-3, atol=1e-4, msg=name)


def test_bfloat16_is_checked_with_its_own_tolerance(tmp_path: Path) -> None:
    save_family(tmp_path, "gpt_oss")
    model = load_hosted(tmp_path, dtype=torch.bfloat16)
    assert (model.runs_on, model.dtype) == ("packed", torch.bfloat16)


def test_deterministic_mode_runs_one_sequence_at_a_time(tmp_path: Path) -> None:
    save_family(tmp_path, "olmo2")
    model = load_hosted(tmp_path, is_deterministic=True)
    assert model.runs_on == "sequential"
    assert "computed a sequence at a time: deterministic mode" in model.notes


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        pytest.param("bert", {"is_decoder": False}, "is not causal", id="looks ahead"),
        pytest.param(
            "recurrent_gemma",
            {
                "lru_width": 32,
                "attention_window_size": 8,
                "block_types": ["recurrent", "attention"],
                "num_key_value_heads": 1,
                "head_dim": 8,
            },
            "hands out no cache",
            id="keeps its cache to itself",
        ),
    ],
)
def test_what_cannot_be_run_faithfully_is_refused(
    tmp_path: Path, kind: str, fields: dict[str, Any], message: str
) -> None:
    save_family(tmp_path, kind, **fields)
    with pytest.raises(BadRequest, match=message):
        load_hosted(tmp_path)


class _Averaging(nn.Module):
    """A layer's last part that mixes a little of every row into all others."""

    def __init__(self, inner: nn.Module, is_faint: bool) -> None:
        super().__init__()
        self.inner, self.share = inner, 1e-9 if is_faint else 0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.inner(x) + self.share * x.cumsum(1)
        return out


@pytest.mark.parametrize("is_faint", [False, True])
def test_a_code_that_mixes_rows_is_not_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_faint: bool
) -> None:
    save_family(tmp_path, "olmo2")
    module = own_module(tmp_path)
    module.model.layers[0].mlp = _Averaging(module.model.layers[0].mlp, is_faint)
    monkeypatch.setattr(loading, "load_module", lambda *_, **__: module)
    if not is_faint:  # what it adds is lost with its cache, too
        with pytest.raises(BadRequest, match="cannot be run faithfully: from its own cache"):
            load_hosted(tmp_path)
        return
    model = load_hosted(tmp_path)
    assert model.runs_on == "sequential"
    assert "beside a sequence of NaN" in model.notes[0]


class _Scaling(nn.Module):
    """A layer's last part that scales by how many tokens there are."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.inner(x) * x.shape[1]
        return out


def test_a_code_that_counts_its_tokens_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_family(tmp_path, "phi")
    module = own_module(tmp_path)
    module.model.layers[0].mlp = _Scaling(module.model.layers[0].mlp)
    monkeypatch.setattr(loading, "load_module", lambda *_, **__: module)
    with pytest.raises(BadRequest, match="cannot be run faithfully: from its own cache"):
        load_hosted(tmp_path)


def test_a_linear_that_the_output_ignores_stays_frozen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_family(tmp_path, "olmo2")
    module = own_module(tmp_path)
    with torch.no_grad():
        module.model.layers[1].mlp.down_proj.weight.zero_()
    monkeypatch.setattr(loading, "load_module", lambda *_, **__: module)
    model = load_hosted(tmp_path)
    names = {site.name for site in model.sites}
    assert "model.layers.1.mlp.down_proj" in names
    assert "model.layers.1.mlp.up_proj" not in names
    assert "frozen: model.layers.*.mlp.up_proj (the output ignores it)" in model.notes
