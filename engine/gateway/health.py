"""Whether the gateway lives and whether it is of use: the answers of /healthz and /readyz. Pure."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, NamedTuple

from ...client.errors import WeftError
from ...client.waiting import describe_phase


class Health(NamedTuple):
    """A status of HTTP and a body of JSON."""

    status: int
    body: dict[str, Any]


def alive() -> Health:
    """The process answers; says nothing of the broker, so that nobody restarts us for its sake."""
    return Health(HTTPStatus.OK, {"status": "ok"})


def readiness(told: Mapping[str, Any] | WeftError) -> Health:
    """Whether a worker has a model loaded and warm.

    Args:
        told: the answer to a query of "capabilities", or why there was none in time.
    """
    if isinstance(told, WeftError):
        status = "unauthorized" if told.code == "unauthorized" else "unreachable"
        return _unready(status, _DETAILS[status])
    state = str(told.get("state", ""))
    if state == "ready":
        names = [str(model["name"]) for model in told["models"]]
        return Health(HTTPStatus.OK, {"status": state, "models": names})
    if state == "loading":
        phases = [describe_phase(each["phase"], each["fraction"]) for each in told["loading"]]
        return _unready(state, "; ".join(phases) or "no worker has connected yet")
    return _unready(state, _DETAILS.get(state, "the server is in no known state"))


_DETAILS = {
    "unauthorized": "this gateway needs a key of its own; WEFT_API_KEY takes one of the operator",
    "unreachable": "the broker does not answer",
    "failed": "no worker serves, and none will be started",
    "stopping": "the server is shutting down",
}


def _unready(status: str, detail: str) -> Health:
    return Health(HTTPStatus.SERVICE_UNAVAILABLE, {"status": status, "detail": detail})
