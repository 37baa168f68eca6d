"""Errors as the official SDK gets them: a status with a body, or a future that has failed."""

import msgspec

from ...client.errors import CODES, BadRequest, WeftError, sentence

# Statuses that the SDK repeats by itself; of ours only a full queue is worth it. A repeat of the
# others finds what the first one found, so the SDK is told not to.
_WORTH_REPEATING = ("busy", "disconnected", "stopping")
RETRY_AFTER_S = 1.0


class Unserved(BadRequest):
    """A field, value or route of the SDK that this server does not serve; names it."""

    code = "not_served"


def http_status(error: WeftError) -> int:
    """The status of a refusal."""
    row = CODES.get(error.code)
    return 500 if row is None else row.http_status


def http_headers(error: WeftError) -> dict[str, str]:
    """The headers that tell the SDK whether to repeat a refused request, and when."""
    if error.code not in _WORTH_REPEATING:
        return {"x-should-retry": "false"}
    return {"x-should-retry": "true", "retry-after": f"{RETRY_AFTER_S:g}"}


def http_body(error: WeftError) -> bytes:
    """The body of a refusal."""
    return msgspec.json.encode(
        {"error": sentence(error), "detail": sentence(error), "code": error.code}
    )


def failed_future(error: WeftError) -> bytes:
    """The body of a future that has failed."""
    row = CODES.get(error.code)
    category = "user" if row is not None and row.fault == "user" else "server"
    return msgspec.json.encode({"error": f"{sentence(error)} ({error.code})", "category": category})
