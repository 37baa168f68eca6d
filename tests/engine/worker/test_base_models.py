"""Which code runs a model, and what its memory plan holds."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hosted_models import save_family
from random_models import save_random_model
from whole_models import edit_json

from weft.client.errors import BadRequest
from weft.engine.hosted.checkpoint import checkpoint_parameters
from weft.engine.hosted.load import load_hosted
from weft.engine.model.base import BaseModel
from weft.engine.model.errors import NotBuilt
from weft.engine.worker.base_models import open_model, why_not_native
from weft.engine.worker.planning import (
    NEVER,
    Wishes,
    check_hosted,
    plan_hosted,
    plan_native,
)

MB = 10**6
WISHES = Wishes(granted_bytes=200 * MB, dtype=torch.float32, batch_tokens=2048)


def opened(path: Path, modelling: str = "auto") -> BaseModel:
    return open_model(path, modelling, device=torch.device("cpu"), dtype=torch.float32)


def test_our_own_decoder_runs_what_it_is_built_for(tmp_path: Path) -> None:
    save_random_model(tmp_path)
    assert why_not_native(tmp_path) == ""
    assert opened(tmp_path).runs_on == "native"
    assert opened(tmp_path, "transformers").runs_on == "packed"


def test_what_it_is_not_built_for_goes_to_transformers(tmp_path: Path) -> None:
    save_family(tmp_path, "olmo2")
    assert "olmo2" in why_not_native(tmp_path)
    assert opened(tmp_path).runs_on == "packed"
    with pytest.raises(NotBuilt, match="olmo2"):
        opened(tmp_path, "native")


def test_a_key_of_an_own_family_that_is_not_built_goes_to_transformers(tmp_path: Path) -> None:
    save_random_model(tmp_path, "llama", hidden_act="gelu")
    assert opened(tmp_path).runs_on == "packed"


def test_a_damaged_config_goes_nowhere(tmp_path: Path) -> None:
    save_random_model(tmp_path)
    edit_json(tmp_path / "config.json", num_hidden_layers=None)
    with pytest.raises(BadRequest, match=r"config\.json lacks num_hidden_layers$"):
        opened(tmp_path)


def test_a_refusal_names_both_reasons(tmp_path: Path) -> None:
    save_family(tmp_path, "bert", is_decoder=False)
    with pytest.raises(BadRequest, match=r"not causal.*our own decoder does not run it.*'bert'"):
        opened(tmp_path)


def test_weights_that_do_not_fit_are_refused_before_they_are_read(tmp_path: Path) -> None:
    save_family(tmp_path, "olmo2")
    check_hosted(WISHES, tmp_path)
    with pytest.raises(BadRequest, match=r"model needs .* GB") as caught:
        check_hosted(replace(WISHES, granted_bytes=50_000), tmp_path)
    assert caught.value.code == "out_of_memory"


def test_a_packed_model_has_batches_and_pages(tmp_path: Path) -> None:
    model = load_hosted(save_family(tmp_path, "olmo2"))
    plan = plan_hosted(WISHES, tmp_path, model)
    assert plan.batch_tokens == 2048
    assert plan.num_pages == plan.kv // (2 * 2 * 2 * 8 * 4 * 16)  # k and v, layers, heads, width
    assert plan.recompute_above_tokens == NEVER


def test_a_sequential_model_has_batches_of_one_sequence(tmp_path: Path) -> None:
    model = load_hosted(save_family(tmp_path, "jamba"))
    plan = plan_hosted(WISHES, tmp_path, model)
    assert plan.batch_tokens == 1
    assert plan.max_datum_tokens > 256


def test_the_plan_has_room_for_the_tanh_of_capped_logits(tmp_path: Path) -> None:
    wishes = replace(WISHES, dtype=torch.bfloat16)
    workspaces = []
    for kind in ("olmo2", "gemma2"):
        path = save_family(tmp_path / kind, kind)
        model = load_hosted(path, dtype=torch.bfloat16)
        held = checkpoint_parameters(path) * 2
        workspaces.append(plan_hosted(wishes, path, model).weights - held)
    chunk = 256 * 97  # logits: their own type, float32 for the losses, and the tanh
    assert workspaces[0] >= (2 + 4) * chunk
    assert workspaces[1] >= (2 + 4 + 4) * chunk


def test_both_plans_of_one_model_hold_about_as_much(tmp_path: Path) -> None:
    save_random_model(tmp_path)
    native, hosted = (
        plan_native(WISHES, tmp_path),
        plan_hosted(WISHES, tmp_path, load_hosted(tmp_path)),
    )
    assert native.num_pages == pytest.approx(hosted.num_pages, rel=0.02)
    # transformers' code keeps more between forward and backward than ours, several times at most
    assert 1 <= native.recompute_above_tokens / hosted.max_datum_tokens < 8
