"""Whether the gateway lives and whether it is of use: the answers of /healthz and /readyz. Pure."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, NamedTuple

from ...client.waiting import describe_phase


class Health(NamedTuple):
    """A status of HTTP and a body of JSON."""

    status: int
    body: dict[str, Any]


def alive() -> Health:
    """The process answers; says nothing of the broker, so that nobody restarts us for its sake."""
    return Health(HTTPStatus.OK, {"status": "ok"})


def readiness(capabilities: Mapping[str, Any] | None) -> Health:
    """Whether a worker has a model loaded and warm.

    Args:
        capabilities: the answer to a query of "capabilities", None when there was none in time.
    """
    if capabilities is None:
        return _unready("unreachable", "the broker does not answer")
    state = str(capabilities.get("state", ""))
    if state == "ready":
        names = [str(model["name"]) for model in capabilities["models"]]
        return Health(HTTPStatus.OK, {"status": state, "models": names})
    if state == "loading":
        phases = [
            describe_phase(each["phase"], each["fraction"]) for each in capabilities["loading"]
        ]
        return _unready(state, "; ".join(phases) or "no worker has connected yet")
    return _unready(state, _DETAILS.get(state, "the server is in no known state"))


_DETAILS = {
    "failed": "no worker serves, and none will be started",
    "stopping": "the server is shutting down",
}


def _unready(status: str, detail: str) -> Health:
    return Health(HTTPStatus.SERVICE_UNAVAILABLE, {"status": status, "detail": detail})
