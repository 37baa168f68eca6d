"""Whole verifications: sound checkpoints pass in every row, damaged ones fail in the right one."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rope_examples import YARN
from safetensors.torch import save_file
from whole_models import (
    END_OF_TEXT,
    SHARD,
    SHARD_SIZE,
    edit_json,
    edit_tensor,
    save_whole_model,
)

from weft.engine.model.config import ModelConfig
from weft.engine.verify.files import check_values
from weft.engine.verify.record import Check
from weft.engine.verify.run import VerifyConfig, verify

ROWS = [
    "config",
    "files",
    "tensors",
    "values",
    "tokenizer",
    "end tokens",
    "chat template",
    "model",
    "memory",
    "isolation",
    "throughput",
    "logits",
    "greedy",
    "gradients",
]
NUMBERS = ROWS[7:]


def table(model: Path | str, **fields: Any) -> dict[str, Check]:
    """The rows by name; each must have been reported once, in order."""
    reported: list[Check] = []
    checks = verify(VerifyConfig(model=str(model), device="cpu", **fields), reported.append)
    assert reported == checks
    return {check.name: check for check in checks}


def statuses(rows: dict[str, Check]) -> dict[str, str]:
    return {name: check.status for name, check in rows.items()}


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        pytest.param("llama", {"is_tied": True, "rope_parameters": YARN}, id="llama yarn tied"),
        pytest.param("qwen2", {"max_shard_size": SHARD_SIZE}, id="qwen2 sharded"),
        pytest.param("mistral", {"sliding_window": 70}, id="mistral window"),
    ],
)
def test_a_sound_checkpoint_passes_in_every_row(
    tmp_path: Path, kind: str, fields: dict[str, Any]
) -> None:
    save_whole_model(tmp_path, kind, **fields)

    rows = table(tmp_path)

    assert list(rows) == ROWS
    assert statuses(rows) == dict.fromkeys(ROWS, "PASS")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_model_that_ships_passes_in_every_row(dtype: str) -> None:
    assert statuses(table("weft/tiny", dtype=dtype)) == dict.fromkeys(ROWS, "PASS")


def truncate(path: Path) -> None:
    (path / SHARD).write_bytes((path / SHARD).read_bytes()[:-64])


def forget(path: Path) -> None:
    (path / SHARD).unlink()


def misindex(path: Path) -> None:
    index = path / "model.safetensors.index.json"
    stated = json.loads(index.read_text())["weight_map"]
    edit_json(index, weight_map=stated | {"model.norm.weight": SHARD, "more.weight": SHARD})


def lose(path: Path) -> None:
    edit_tensor(path, "model.layers.1.mlp.up_proj.weight", lambda tensor: None)
    index = path / "model.safetensors.index.json"
    stated = json.loads(index.read_text())["weight_map"]
    del stated["model.layers.1.mlp.up_proj.weight"]
    edit_json(index, weight_map=stated)


def spoil(change: Callable[[torch.Tensor], torch.Tensor | None]) -> Callable[[Path], None]:
    return lambda path: edit_tensor(path, "model.layers.1.mlp.up_proj.weight", change)


def with_nan(tensor: torch.Tensor) -> torch.Tensor:
    tensor[3, 5] = torch.nan
    return tensor


@pytest.mark.parametrize(
    ("damage", "row", "sentence"),
    [
        (truncate, "files", f"{SHARD} cannot be read"),
        (forget, "files", f"{SHARD} does not exist"),
        (misindex, "files", "says that model.norm.weight is in"),
        (spoil(lambda tensor: None), "files", "names model.layers.1.mlp.up_proj.weight in"),
        (lose, "tensors", "lacks 1 tensors: model.layers.1.mlp.up_proj"),
        (spoil(lambda tensor: tensor[:-1].clone()), "tensors", r"up_proj.weight .* \[47, 32\]"),
        (spoil(lambda tensor: tensor.to(torch.int8)), "tensors", "up_proj.weight .* is I8"),
        (spoil(with_nan), "values", "up_proj.weight .* holds 1 values that are not finite"),
        (spoil(torch.zeros_like), "values", "up_proj.weight .* is all zeros"),
        (
            lambda path: edit_json(path / "config.json", num_attention_heads=3),
            "config",
            "num_attention_heads is 3",
        ),
    ],
)
def test_damage_fails_in_its_row_and_nothing_is_computed_from_it(
    tmp_path: Path, damage: Callable[[Path], None], row: str, sentence: str
) -> None:
    save_whole_model(tmp_path, max_shard_size=SHARD_SIZE)
    damage(tmp_path)

    rows = table(tmp_path)

    assert [check.name for check in rows.values() if check.status == "FAIL"] == [row]
    assert re.search(sentence, rows[row].detail)
    assert {rows[name].status for name in NUMBERS} == {"SKIP"}


def test_biases_may_be_zeros(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.experts.down_proj_bias"
    save_file({name: torch.zeros(4, 32)}, tmp_path / "model.safetensors")

    assert check_values(tmp_path).status == "PASS"


def test_a_wrong_end_token_fails_alone(tmp_path: Path) -> None:
    save_whole_model(tmp_path)
    edit_json(tmp_path / "tokenizer_config.json", eos_token="<|pad|>")

    rows = table(tmp_path)

    assert [check.name for check in rows.values() if check.status == "FAIL"] == ["end tokens"]
    assert "'<|pad|>', token 259" in rows["end tokens"].detail


def test_a_checkpoint_without_tokenizer_is_checked_as_far_as_it_goes(tmp_path: Path) -> None:
    save_whole_model(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()

    rows = table(tmp_path)

    skipped = {"tokenizer", "chat template"}
    assert statuses(rows) == {name: "SKIP" if name in skipped else "PASS" for name in ROWS}
    assert str(END_OF_TEXT) in rows["end tokens"].figure


def test_without_peft_the_gradients_are_skipped_and_the_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_whole_model(tmp_path)
    monkeypatch.setattr("weft.engine.verify.run.has_peft", lambda: False)

    rows = table(tmp_path)

    assert statuses(rows) == dict.fromkeys(ROWS, "PASS") | {"gradients": "SKIP"}
    assert "weft[verify]" in rows["gradients"].detail


def test_weights_that_do_not_fit_are_told_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_whole_model(tmp_path)
    monkeypatch.setattr("weft.engine.verify.opening.free_bytes", lambda device: 100_000)

    rows = table(tmp_path)

    assert list(rows) == ROWS
    assert "take 0.000169 GB in float32, and 0.0001 are free" in rows["model"].detail
    assert {rows[name].status for name in NUMBERS[1:]} == {"SKIP"}


def test_a_fault_of_our_side_fails_in_its_row_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_whole_model(tmp_path)

    def fail(*_: object) -> None:
        raise RuntimeError("a kernel failed")

    monkeypatch.setattr("weft.engine.verify.comparisons.gradients_of", fail)

    rows = table(tmp_path)

    assert statuses(rows) == dict.fromkeys(ROWS, "PASS") | {"gradients": "FAIL"}
    assert rows["gradients"].detail == "RuntimeError: a kernel failed"


def test_a_wrong_formula_of_ours_fails_against_the_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_whole_model(tmp_path)
    wrong = replace(ModelConfig.from_directory(tmp_path), rope_theta=100.0)
    monkeypatch.setattr(ModelConfig, "from_directory", lambda path: wrong)

    rows = table(tmp_path)

    failed = {check.name for check in rows.values() if check.status == "FAIL"}
    assert {"logits", "gradients"} <= failed <= {"logits", "greedy", "gradients"}
