"""The generated text: seeded, complete, and free of what is held out."""

import random
import re
from itertools import islice

import pytest

from weft.engine.demo import tiny_text


def texts(num: int, seed: int = 0) -> list[str]:
    documents = islice(tiny_text.documents(seed), num)
    return [tiny_text.decode(list(document.tokens)) for document in documents]


def test_equal_seeds_give_equal_documents() -> None:
    assert texts(200, seed=3) == texts(200, seed=3)
    assert texts(200, seed=3) != texts(200, seed=4)


def test_no_document_adds_a_held_out_pair() -> None:
    pairs = [
        (int(a), int(b)) for text in texts(20_000) for a, b in re.findall(r"(\d+)\+(\d+)", text)
    ]
    assert len(pairs) > 5000
    assert not [pair for pair in pairs if tiny_text.is_held_out(*pair)]


def test_no_difference_gives_a_held_out_sum_away() -> None:
    found = [match for text in texts(20_000) if (match := re.fullmatch(r"(\d+)-(\d+)=(\d+)", text))]
    triples = [tuple(map(int, match.groups())) for match in found]
    assert triples
    assert all(a - b == c and not tiny_text.is_held_out(b, c) for a, b, c in triples)


def test_no_document_holds_a_held_out_word_or_list() -> None:
    lines = [text for text in texts(20_000) if text.startswith(("copy ", "sort "))]
    items = [text.partition(" ")[2].partition(" -> ")[0] for text in lines]
    words = [w for item in items for w in (item.split() if item[0].isalpha() else [item])]
    assert len(words) > 5000
    assert not [word for word in words if tiny_text.is_held_out_text(word)]


def test_the_split_holds_out_about_one_in_eight_pairs_in_either_order() -> None:
    flags = [tiny_text.is_held_out(a, b) for a in range(100) for b in range(100)]
    assert 0.1 < sum(flags) / len(flags) < 0.15
    assert tiny_text.is_held_out(12, 34) == tiny_text.is_held_out(34, 12)


def test_answers_are_right() -> None:
    for text in texts(5000):
        if match := re.fullmatch(r"(\d+)\+(\d+)=(\d+)", text):
            assert int(match[1]) + int(match[2]) == int(match[3])
        elif text.startswith("sort "):
            given, _, answer = text.removeprefix("sort ").partition(" -> ")
            assert answer.split() == sorted(given.split())
        elif text.startswith("copy "):
            given, _, answer = text.removeprefix("copy ").partition(" -> ")
            assert answer == given


def test_every_document_ends_and_has_an_answer() -> None:
    for document in islice(tiny_text.documents(1), 2000):
        assert document.tokens[-1] == tiny_text.END_OF_TEXT
        assert 0 < document.answer_start < len(document.tokens) - 1


@pytest.mark.parametrize("text", ["", "a+b", "z\u00fcrich \u2192 \U0001f600\n"])
def test_decoding_inverts_encoding(text: str) -> None:
    assert tiny_text.decode(tiny_text.encode(text)) == text


def test_decoding_leaves_special_tokens_out() -> None:
    tokens = [tiny_text.IM_START, *tiny_text.encode("hi"), tiny_text.IM_END, tiny_text.PAD, 300]
    assert tiny_text.decode(tokens) == "hi"


def test_words_alternate_and_have_two_to_eight_letters() -> None:
    rng = random.Random(0)
    words = [tiny_text.word(rng) for _ in range(500)]
    assert {len(word) for word in words} == set(range(2, 9))
    assert all(word.isalpha() and word.islower() for word in words)
