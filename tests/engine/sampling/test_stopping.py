"""Stop tokens, stop strings over incremental text, and the limits of length."""

import pytest

from weft.client.errors import BadRequest
from weft.engine.sampling.stopping import Stopping, StopStrings, max_new_tokens


def decode_bytes(tokens: list[int]) -> str:
    """A byte-level tokenizer: every token is one byte."""
    return bytes(tokens).decode(errors="replace")


def push_all(strings: StopStrings, text: bytes) -> int:
    """Push byte after byte; returns how many were needed, -1 when no string was found."""
    for count, byte in enumerate(text, 1):
        if strings.push(byte):
            return count
    return -1


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "expected"), [(10, 5, 5), (10, -1, 90), (99, -1, 1), (99, 1, 1)]
)
def test_new_tokens_stay_within_the_context(prompt: int, max_tokens: int, expected: int) -> None:
    assert max_new_tokens(prompt, max_tokens, 100) == expected


@pytest.mark.parametrize(("prompt", "max_tokens"), [(10, 91), (100, 1), (100, -1)])
def test_more_than_the_context_is_refused(prompt: int, max_tokens: int) -> None:
    with pytest.raises(BadRequest, match="the context holds 100"):
        max_new_tokens(prompt, max_tokens, 100)


def test_a_stop_token_ends_a_sample() -> None:
    stopping = Stopping(frozenset({7}), 10)
    assert [stopping.push(token) for token in (1, 2, 7)] == ["", "", "stop"]


def test_a_stop_token_at_the_last_place_counts_as_stop() -> None:
    stopping = Stopping(frozenset({7}), 2)
    assert [stopping.push(token) for token in (1, 7)] == ["", "stop"]


def test_the_number_of_tokens_ends_a_sample() -> None:
    stopping = Stopping(frozenset(), 3)
    assert [stopping.push(token) for token in (1, 2, 3)] == ["", "", "length"]


def test_a_stop_string_ends_a_sample() -> None:
    stopping = Stopping(frozenset(), 9, StopStrings(["ab"], decode_bytes))
    assert [stopping.push(token) for token in b"aab"] == ["", "", "stop"]


@pytest.mark.parametrize(
    ("strings", "text", "expected"),
    [
        pytest.param(["\n\n"], b"one\n\ntwo", 5, id="over two tokens"),
        pytest.param(["x", "end"], b"the end x", 7, id="whichever comes first"),
        pytest.param(["aab"], b"aaab", 4, id="overlapping beginnings"),
        pytest.param(["é!"], "caf\u00e9!".encode(), 6, id="character of two tokens"),
        pytest.param(["b"], b"a\xff\xffb", 4, id="after bytes that are no text"),
        pytest.param(["zz"], b"zazaz", -1, id="never"),
    ],
)
def test_stop_strings_are_found_in_the_text(strings: list[str], text: bytes, expected: int) -> None:
    assert push_all(StopStrings(strings, decode_bytes), text) == expected


def test_a_token_that_holds_the_string_and_half_a_character_stops() -> None:
    pieces = {0: b"stop\xc3", 1: b"go "}
    strings = StopStrings(
        ["stop"], lambda ids: b"".join(pieces[i] for i in ids).decode(errors="replace")
    )
    assert [strings.push(token) for token in (1, 0)] == [False, True]


def test_only_a_few_tokens_are_decoded_at_a_time() -> None:
    lengths: list[int] = []

    def decode(tokens: list[int]) -> str:
        lengths.append(len(tokens))
        return decode_bytes(tokens)

    push_all(StopStrings(["zz"], decode), b"abcdefgh" * 50)
    assert max(lengths) == 2
