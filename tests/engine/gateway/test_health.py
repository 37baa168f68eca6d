"""The answers of /healthz and /readyz."""

from typing import Any

import pytest

from weft.client.errors import Disconnected, Unauthorized, WeftError
from weft.engine.gateway.health import alive, readiness


def test_a_process_that_answers_is_alive() -> None:
    assert alive() == (200, {"status": "ok"})


def test_a_server_with_a_warm_model_is_ready() -> None:
    told = {"state": "ready", "models": [{"name": "weft/tiny"}], "loading": []}
    assert readiness(told) == (200, {"status": "ready", "models": ["weft/tiny"]})


@pytest.mark.parametrize(
    ("told", "status", "detail"),
    [
        (Disconnected("words"), "unreachable", "the broker does not answer"),
        (
            Unauthorized("words"),
            "unauthorized",
            "this gateway needs a key of its own; WEFT_API_KEY takes one of the operator",
        ),
        ({"state": "loading", "loading": []}, "loading", "no worker has connected yet"),
        (
            {"state": "loading", "loading": [{"phase": "reading weights", "fraction": 0.4}]},
            "loading",
            "reading weights, 40 %",
        ),
        (
            {"state": "loading", "loading": [{"phase": "warming", "fraction": -1.0}]},
            "loading",
            "warming",
        ),
        (
            {"state": "failed", "loading": []},
            "failed",
            "no worker serves, and none will be started",
        ),
        ({"state": "stopping", "loading": []}, "stopping", "the server is shutting down"),
        ({}, "", "the server is in no known state"),
    ],
)
def test_any_other_is_not_and_says_why(
    told: dict[str, Any] | WeftError, status: str, detail: str
) -> None:
    assert readiness(told) == (503, {"status": status, "detail": detail})
