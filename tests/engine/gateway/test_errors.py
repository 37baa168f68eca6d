"""Errors as the SDK gets them: what is final is repeated by nobody, and what may pass is."""

import json

import pytest

from weft.client.errors import CODES, MAX_SENTENCE, WeftError, from_code
from weft.engine.gateway.errors import Unserved, failed_future, http_body, http_headers, http_status

# What the SDK sends again, whatever a header says.
REPEATED = {408, 409, 429, *range(500, 600)}


@pytest.mark.parametrize("code", CODES)
def test_the_sdk_repeats_what_may_pass_and_nothing_else(code: str) -> None:
    error = from_code(code, "words")
    may_pass = CODES[code].fault != "user" or code == "timeout"
    may_pass = may_pass and code != "out_of_memory"
    assert (http_status(error) in REPEATED) == may_pass
    headers = http_headers(error)
    assert headers["x-should-retry"] == ("true" if may_pass else "false")
    assert ("retry-after" in headers) == may_pass


def test_an_unknown_code_is_a_fault_of_ours() -> None:
    assert http_status(WeftError("words", "new_code")) == 500


def test_a_refusal_tells_its_sentence_and_code() -> None:
    assert json.loads(http_body(Unserved("no such thing", "it"))) == {
        "error": "no such thing",
        "code": "not_served",
    }


@pytest.mark.parametrize(
    ("code", "category"),
    [("bad_request", "user"), ("run_lost", "server"), ("busy", "server"), ("new_code", "server")],
)
def test_a_future_fails_with_the_side_that_is_to_blame(code: str, category: str) -> None:
    told = json.loads(failed_future(WeftError("words", code)))
    assert told == {"error": f"words ({code})", "category": category}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("no checkpoint weft://r/weights/x", "no checkpoint tinker://r/weights/x"),
        ("'weft://r' is no path", "'weft://r' is no path"),
    ],
)
def test_the_brokers_paths_are_told_as_the_sdk_writes_them(words: str, told: str) -> None:
    assert json.loads(http_body(WeftError(words)))["error"] == told
    assert json.loads(failed_future(WeftError(words)))["error"].startswith(told)


@pytest.mark.parametrize("words", ["\ud800", "x" * 100_000])
def test_any_words_can_be_told(words: str) -> None:
    error = WeftError(words)
    for body in (http_body(error), failed_future(error)):
        assert len(json.loads(body)["error"]) <= MAX_SENTENCE + 20
