"""Errors as the official SDK gets them: a status with a body, or a future that has failed.

The SDK repeats 408, 409, 429 and every 5xx for minutes, whatever a header says. What is final must
have another status: a conflict is 422 here, and what is not served 400, not 501. Of 413 the SDK has
no exception, so that what is too large is 400, too, which it raises as a BadRequestError.
"""

import re

import msgspec

from ...client.errors import CODES, BadRequest, WeftError, sentence
from ...client.paths import SCHEME
from .names import SDK_SCHEME

RETRY_AFTER_S = 1.0
_REPEATED = (408, 429, 500, 502, 503, 504)
_FINAL = {409: 422, 413: 400, 507: 422}
_BROKERS_PATH = re.compile(rf"(?<!['\"]){SCHEME}")  # what is in quotes are the caller's words


class Unserved(BadRequest):
    """A field, value or route of the SDK that this server does not serve; names it."""

    code = "not_served"

    def __init__(self, message: str, what: str) -> None:
        """
        Args:
            message: for the caller.
            what: is not served, in words that hold nothing of the caller's, for the log.
        """
        super().__init__(message)
        self.what = what


def http_status(error: WeftError) -> int:
    """The status of a refusal."""
    row = CODES.get(error.code)
    status = 500 if row is None else row.http_status
    return _FINAL.get(status, status)


def http_headers(error: WeftError) -> dict[str, str]:
    """Whether to repeat a refused request, and when."""
    if http_status(error) not in _REPEATED:
        return {"x-should-retry": "false"}
    return {"x-should-retry": "true", "retry-after": f"{RETRY_AFTER_S:g}"}


def http_body(error: WeftError) -> bytes:
    """The body of a refusal."""
    return msgspec.json.encode({"error": _told(error), "code": error.code})


def failed_future(error: WeftError) -> bytes:
    """The body of a future that has failed."""
    row = CODES.get(error.code)
    category = "user" if row is not None and row.fault == "user" else "server"
    return msgspec.json.encode({"error": f"{_told(error)} ({error.code})", "category": category})


def _told(error: WeftError) -> str:
    """The sentence of an error, with paths as the SDK writes them."""
    return _BROKERS_PATH.sub(SDK_SCHEME, sentence(error))
