"""Rows of the tokenizer: ends, special tokens and chat templates that disagree with the model."""

from typing import Any

import pytest
from whole_models import TINY

from weft.engine.verify.record import guarded
from weft.engine.verify.tokens import check_ends, check_template, check_tokenizer


@pytest.fixture
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(TINY))


@pytest.mark.parametrize(
    ("config", "generation", "status", "part"),
    [
        ([256], None, "PASS", "is one of them"),
        ([256], [256, 258], "PASS", "is one of them"),
        ([258], None, "FAIL", "'<|endoftext|>', token 256"),
        ([256], [258], "FAIL", "config.json ends at 256, generation_config.json does not"),
        ([256, 999], None, "FAIL", "999 is outside 0 .. 319"),
        ([], None, "FAIL", "'<|endoftext|>', token 256"),
    ],
)
def test_ends_must_agree(
    tokenizer: Any, config: list[int], generation: list[int] | None, status: str, part: str
) -> None:
    check = check_ends(tokenizer, config, generation, vocab_size=320)

    assert check.status == status
    assert part in check.detail


def test_no_end_anywhere_is_no_fault() -> None:
    assert check_ends(None, [], None, vocab_size=320).status == "SKIP"
    assert check_ends(None, [7], None, vocab_size=320).status == "PASS"


def test_stopping_nowhere_is_said(tokenizer: Any) -> None:
    check = check_ends(tokenizer, [], None, vocab_size=320)

    assert (check.status, check.figure) == ("FAIL", "stops at no token")


def test_an_embedding_with_too_few_rows_fails(tokenizer: Any) -> None:
    assert check_tokenizer(tokenizer, 320).status == "PASS"

    check = check_tokenizer(tokenizer, 200)

    assert check.status == "FAIL"
    assert "200 rows" in check.detail


def test_added_tokens_beyond_the_embedding_are_told_and_no_fault(tokenizer: Any) -> None:
    tokenizer.add_tokens(["<new>"])

    check = check_tokenizer(tokenizer, 320)

    assert (check.status, "1 added tokens have no row" in check.detail) == ("PASS", True)


def test_a_text_that_comes_back_otherwise_fails(tokenizer: Any) -> None:
    from tokenizers.normalizers import Lowercase

    tokenizer.backend_tokenizer.normalizer = Lowercase()

    check = check_tokenizer(tokenizer, 320)

    assert check.status == "FAIL"
    assert "'the quick brown fox" in check.detail


@pytest.mark.parametrize(
    ("old", "new", "status", "part"),
    [
        ("", "", "PASS", "turn ends with '<|im_end|>'"),
        ("assistant\n' }}", "assistant\n<think>' }}", "FAIL", "<think>"),
        ("<|im_end|>\n", "<|pad|>\n", "FAIL", "none of which stops sampling"),
        ("message['content']", "''", "FAIL", "lacks the answer"),
        ("for message in messages", "for message in", "FAIL", ""),
    ],
)
def test_a_template_that_training_or_sampling_trips_over_fails(
    tokenizer: Any, old: str, new: str, status: str, part: str
) -> None:
    tokenizer.chat_template = tokenizer.chat_template.replace(old, new)

    check = guarded("chat template", lambda: check_template(tokenizer, [256, 258]))

    assert check.status == status
    assert part in check.detail


def test_a_base_model_has_no_template_to_check(tokenizer: Any) -> None:
    tokenizer.chat_template = None

    assert check_template(tokenizer, [256]).status == "SKIP"
