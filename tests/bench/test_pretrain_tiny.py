"""The pretraining script learns, repeats itself, and writes what loads."""

import importlib.util
import sys
from itertools import islice
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from weft.engine.demo import tiny_text
from weft.engine.demo.tiny_text import Document

SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "pretrain_tiny.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pretrain_tiny", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["pretrain_tiny"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_a_few_steps_lower_the_loss(script: ModuleType, tmp_path: Path) -> None:
    config = script.PretrainConfig(
        output=tmp_path, steps=6, rows=4, warmup=2, num_eval=4, learning_rate=1e-2
    )
    model = script.train(config)
    untrained = script.Qwen3ForCausalLM._from_config(script.model_config(), dtype=torch.float32)
    batch = script.pack_rows(tiny_text.documents(seed=9), 4, 128)
    assert script.loss_of(model, batch).item() < script.loss_of(untrained, batch).item() - 1


def test_equal_arguments_give_equal_weights(script: ModuleType, tmp_path: Path) -> None:
    config = script.PretrainConfig(output=tmp_path, steps=2, rows=2, num_eval=2)
    first, second = (script.train(config).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_is_saved_loads_as_a_model_and_a_tokenizer(script: ModuleType, tmp_path: Path) -> None:
    model = script.Qwen3ForCausalLM._from_config(script.model_config(), dtype=torch.float32)
    script.save(model, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.dtype == torch.bfloat16
    assert loaded.generation_config.eos_token_id == [tiny_text.END_OF_TEXT, tiny_text.IM_END]
    assert AutoTokenizer.from_pretrained(tmp_path)("a\u00e9")["input_ids"] == [97, 0xC3, 0xA9]


def test_the_shipped_configuration_is_the_scripts(script: ModuleType, tmp_path: Path) -> None:
    model = script.Qwen3ForCausalLM._from_config(script.model_config(), dtype=torch.float32)
    script.save(model, tmp_path)
    shipped = SCRIPT.parents[1] / "engine" / "tiny"
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_text() == (shipped / name).read_text()


def test_packed_rows_hold_whole_documents_that_see_only_themselves(script: ModuleType) -> None:
    batch = script.pack_rows(tiny_text.documents(seed=0), 2, 64)
    first = next(tiny_text.documents(seed=0))
    length = len(first.tokens)
    assert batch.tokens[0, :length].tolist() == list(first.tokens)
    assert batch.positions[0, length].item() == 0
    assert not batch.mask[0, 0, length:, :length].any()
    assert not batch.mask[0, 0, :length].triu(1).any()


def test_only_answers_have_full_weight_and_ends_predict_nothing(script: ModuleType) -> None:
    document = Document((10, 11, 12, 13), answer_start=2)
    batch = script.pack_rows(iter([document]), 1, 8)
    assert batch.weights[0].tolist() == pytest.approx([0.1, 1, 1, 0, 0, 0, 0, 0])
    assert batch.targets[0, :3].tolist() == [11, 12, 13]


@pytest.mark.parametrize("kind", ["sum", "chat sum", "copy", "sort"])
def test_evaluation_prompts_are_not_generated(script: ModuleType, kind: str) -> None:
    documents = islice(tiny_text.documents(seed=0), 5000)
    seen = {document.tokens[: document.answer_start] for document in documents}
    assert not [prompt for prompt, _ in script.held_out_items(kind, 50) if tuple(prompt) in seen]
