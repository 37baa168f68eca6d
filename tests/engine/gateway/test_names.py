"""Paths of both schemes, ids of futures, numbers of requests."""

import pytest

from weft.client.errors import BadRequest
from weft.engine.gateway.names import from_weft, future_id, parse_future_id, request_number, to_weft

SESSION = "0123456789abcdef" * 2
RUN = f"{SESSION}:train:3"


@pytest.mark.parametrize("kind", ["weights", "sampler_weights", "external_weights"])
def test_paths_change_their_scheme_and_back(kind: str) -> None:
    path = f"tinker://{RUN}/{kind}/weft-step.1"
    assert to_weft(path) == f"weft://{RUN}/{kind}/weft-step.1"
    assert from_weft(to_weft(path)) == path


@pytest.mark.parametrize(
    "path",
    [
        "",
        f"{RUN}/weights/a",
        f"weft://{RUN}/weights/a",
        f"tinker://weft://{RUN}/weights/a",
        f"tinker://tinker://{RUN}/weights/a",
        f"tinker://{RUN}/weights/a/b",
        f"tinker://{RUN}/other/a",
        f"tinker://{RUN}/weights/..",
        "tinker://run/weights/a",
        f"TINKER://{RUN}/weights/a",
    ],
)
def test_what_is_no_path_is_refused_in_the_sdks_words(path: str) -> None:
    with pytest.raises(BadRequest, match="is no path of a checkpoint, which is tinker://<run id>"):
        to_weft(path)


def test_ids_of_futures_are_read_back() -> None:
    assert parse_future_id(future_id(SESSION, 2**62 - 1)) == (SESSION, 2**62 - 1)


@pytest.mark.parametrize(
    "text", ["", SESSION, f"{SESSION}:", f"{SESSION}:x", f"{SESSION}:-1", "a:1"]
)
def test_other_ids_are_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="is no request_id"):
        parse_future_id(text)


def test_a_request_has_the_same_number_whenever_it_is_asked_for() -> None:
    assert request_number("command", RUN, 4) == request_number("command", RUN, 4)
    assert request_number("command", RUN, 4) == 2367867298491208944


def test_numbers_of_requests_differ_and_are_of_62_bits() -> None:
    owners = (RUN, f"{SESSION}:train:4", f"{SESSION}:sample:3")
    found = {
        request_number(kind, owner, seq)
        for kind in ("command", "sample")
        for owner in owners
        for seq in range(100)
    }
    assert len(found) == 600
    assert all(2**61 <= number < 2**62 for number in found)
