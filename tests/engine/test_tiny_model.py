"""The model that ships: an ordinary Hugging Face directory, small, and half-taught."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, Qwen3ForCausalLM

import weft.engine
from weft.engine.demo import tiny_text
from weft.engine.demo.tasks import Item, is_right, sums

TINY = Path(weft.engine.__path__[0]) / "tiny"
MAX_BYTES = 6_000_000


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(TINY)


def test_the_directory_is_at_most_six_megabytes() -> None:
    assert sum(path.stat().st_size for path in TINY.iterdir()) <= MAX_BYTES


def test_the_files_have_the_names_that_loaders_look_for() -> None:
    assert {path.name for path in TINY.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_weights_are_finite_bfloat16_of_one_to_two_million_parameters() -> None:
    tensors = load_file(TINY / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())
    assert 1_000_000 <= sum(tensor.numel() for tensor in tensors.values()) <= 2_000_000
    assert "lm_head.weight" not in tensors


def test_the_configuration_says_what_the_text_generator_assumes() -> None:
    config = json.loads((TINY / "config.json").read_text())
    assert config["vocab_size"] == tiny_text.VOCAB_SIZE
    assert config["max_position_embeddings"] == 4096
    assert config["tie_word_embeddings"] is True
    assert config["eos_token_id"] == tiny_text.END_OF_TEXT


@pytest.mark.parametrize(
    "text",
    [
        "27+45=",
        "  two  spaces, a tab\tand lines\r\n\n",
        "it's ? ! . isn't",
        "Z\u00fcrich \u65e5\u672c\u8a9e \U0001f600 \u0000 \u00ff \ufeff",
        "e\u0301 is not \u00e9",
        "",
    ],
)
def test_token_ids_are_bytes_and_round_trip(tokenizer: Any, text: str) -> None:
    tokens = tokenizer(text)["input_ids"]
    assert tokens == list(text.encode())
    assert tokenizer.decode(tokens) == text


def test_special_tokens_follow_the_bytes(tokenizer: Any) -> None:
    names = list(tiny_text.SPECIAL_TOKENS)
    assert tokenizer.convert_tokens_to_ids(names) == list(tiny_text.SPECIAL_TOKENS.values())
    assert tokenizer.eos_token_id == tiny_text.END_OF_TEXT
    assert tokenizer.pad_token_id == tiny_text.PAD
    assert len(tokenizer) == tiny_text.VOCAB_SIZE
    assert tiny_text.VOCAB_SIZE % 16 == 0


def test_every_token_id_can_be_decoded(tokenizer: Any) -> None:
    assert all(tokenizer.decode([token]) for token in range(tiny_text.VOCAB_SIZE))


def test_the_chat_template_gives_the_tokens_of_chat_prompt(tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "What is 1+2?"}]
    encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)
    assert list(encoded["input_ids"]) == tiny_text.chat_prompt("What is 1+2?")


def test_it_adds_sometimes_and_leaves_room() -> None:
    model = Qwen3ForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    items = sums(held_out=True)[::5]
    share = sum(map(is_right, items, sampled_answers(model, items))) / len(items)
    assert 0.25 < share < 0.7  # 200 prompts: a standard error is 0.035


@torch.no_grad()
def sampled_answers(model: Qwen3ForCausalLM, items: list[Item]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.tensor([item.prompt for item in items])
    for _ in range(4):
        logits = model(tokens).logits[:, -1]
        drawn = torch.multinomial(logits.softmax(-1), 1, generator=generator)
        tokens = torch.cat((tokens, drawn), 1)
    rows = [row[len(items[0].prompt) :] for row in tokens.tolist()]
    return [row[: row.index(256) + 1] if 256 in row else row for row in rows]
