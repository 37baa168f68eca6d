"""Reasons on their way to the client."""

from typing import Any

import pytest

from weft.client.errors import EngineFailed
from weft.client.waiting import Reason, read_reasons

QUEUED = Reason(code="queued", detail="3rd in your lane", place=3, ahead=12, sessions=2)


def test_a_reason_travels_as_what_differs_from_its_defaults() -> None:
    fields = QUEUED.to_fields()
    assert fields == {
        "code": "queued",
        "detail": "3rd in your lane",
        "place": 3,
        "ahead": 12,
        "sessions": 2,
    }
    assert read_reasons({"reasons": [fields]}, [7]) == {7: QUEUED}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        pytest.param(None, "no 1 reasons", id="none"),
        pytest.param([], "no 1 reasons", id="too few"),
        pytest.param(["x"], "is no reason", id="no map"),
        pytest.param([{"code": "sent"}], "is no reason", id="no detail"),
        pytest.param([{"code": "a", "detail": "b", "x": 1}], "is no reason", id="unknown"),
        pytest.param([{"code": "a", "detail": 1}], "detail is 1", id="type"),
        pytest.param([{"code": "a", "detail": "b", "place": True}], "place is True", id="bool"),
    ],
)
def test_what_is_no_reason_is_the_engines_fault(entries: Any, message: str) -> None:
    with pytest.raises(EngineFailed, match=message):
        read_reasons({"reasons": entries}, [7])
