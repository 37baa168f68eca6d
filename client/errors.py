"""What can go wrong, as one tree of exceptions and one table of stable codes.

    WeftError
     +- BadRequest            the caller's fault; sending the same again fails again
     |   +- Unauthorized      no key, or one that the server does not take
     |   +- NotFound          no such model, run, checkpoint or sampler, or not yours
     |   +- Conflict          the number, name or state is taken
     |   +- TemplateError     a chat template that cannot do what is asked of it
     +- Busy                  a limit is reached; the client waits and tries again by itself
     +- Timeout               the caller's own wait ended; the work goes on
     +- Disconnected          the broker cannot be reached
     +- EngineFailed          the engine's fault; nothing of the command is in effect

On the wire an error is a `code` of `CODES` and a sentence. The official SDK's names are aliases.
"""

from dataclasses import dataclass

MAX_SENTENCE = 2000  # characters of an error's sentence on the wire; encoded at most 8 kB


class WeftError(Exception):
    """Base of all errors of Weft; `code` is stable, the message is for people."""

    code = "internal"

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (str(self), self.code))


class BadRequest(WeftError, ValueError):
    """The request is wrong as it stands."""

    code = "bad_request"


class Unauthorized(BadRequest):
    """The server does not take the API key. Nothing is sent again; make a client with another."""

    code = "unauthorized"


class NotFound(BadRequest):
    """The thing named does not exist, or belongs to somebody else."""

    code = "not_found"


class Conflict(BadRequest):
    """The request contradicts something already accepted."""

    code = "conflict"


class TemplateError(BadRequest):
    """A chat template does not let the tokens to be trained be told from the others."""


class Busy(WeftError):
    """A limit is reached for now."""

    code = "busy"


class Timeout(WeftError, TimeoutError):
    """The wait given by the caller ended first."""

    code = "timeout"


class Disconnected(WeftError, ConnectionError):
    """The broker does not answer."""

    code = "disconnected"


class EngineFailed(WeftError):
    """The engine failed; the command left no trace."""

    code = "internal"


@dataclass(frozen=True, slots=True)
class Code:
    """One row of the table of error codes."""

    exception: type[WeftError]
    fault: str  # "user", "server" or "limit"
    http_status: int
    meaning: str


CODES: dict[str, Code] = {
    "bad_request": Code(BadRequest, "user", 400, "a field, value or combination is not accepted"),
    "malformed": Code(BadRequest, "user", 400, "the bytes are not a message of this protocol"),
    "unsupported_version": Code(BadRequest, "user", 400, "no protocol version in common"),
    "unknown_session": Code(BadRequest, "user", 400, "the connection has not said hello"),
    "too_large": Code(BadRequest, "user", 413, "a message, batch, datum or name is over its limit"),
    "unauthorized": Code(
        Unauthorized, "user", 401, "the API key is missing, wrong, or not for this"
    ),
    "not_served": Code(BadRequest, "user", 400, "this server does not serve it, and says what"),
    "not_found": Code(
        NotFound, "user", 404, "no such model, run, sampler or checkpoint, or foreign"
    ),
    "conflict": Code(Conflict, "user", 409, "same number with other content, or the name is taken"),
    "too_late": Code(Conflict, "user", 409, "it has started and cannot be cancelled"),
    "no_gradients": Code(Conflict, "user", 409, "optim_step without a gradient"),
    "non_finite": Code(BadRequest, "user", 422, "an input, loss, gradient or weight is not finite"),
    "cancelled": Code(Conflict, "user", 409, "it was withdrawn before it started"),
    "result_expired": Code(Conflict, "user", 410, "it was done, and its result is no longer kept"),
    "session_expired": Code(Conflict, "user", 410, "the session ended before the work started"),
    "busy": Code(Busy, "limit", 429, "a queue, memory or quota is full; retry later"),
    "run_lost": Code(EngineFailed, "server", 503, "the worker that held the run is gone"),
    "no_worker": Code(EngineFailed, "server", 503, "no worker serves, and none will be started"),
    "out_of_memory": Code(EngineFailed, "server", 507, "it does not fit, even alone"),
    "stopping": Code(EngineFailed, "server", 503, "the server is shutting down"),
    "internal": Code(EngineFailed, "server", 500, "a fault of the engine"),
    # Raised by the client itself; never on the wire.
    "disconnected": Code(Disconnected, "server", 503, "the server does not answer"),
    "timeout": Code(Timeout, "user", 504, "the wait given by the caller ended first"),
}


def from_code(code: str, detail: str) -> WeftError:
    """Build the exception for a wire error; an unknown code becomes EngineFailed."""
    row = CODES.get(code)
    exception = EngineFailed if row is None else row.exception
    return exception(detail, code)


def sentence(text: object) -> str:
    """An error in words that fit into a header and can be encoded, whatever they quote."""
    words = str(text)
    words = words if len(words) <= MAX_SENTENCE else words[: MAX_SENTENCE - 3] + "..."
    return words.encode("utf-8", "backslashreplace").decode()


# Names under which loops written for the official SDK catch these.
TinkerError = APIError = WeftError
BadRequestError = BadRequest
AuthenticationError = Unauthorized
NotFoundError = NotFound
ConflictError = Conflict
RateLimitError = Busy
APITimeoutError = Timeout
APIConnectionError = Disconnected
InternalServerError = EngineFailed
RequestFailedError = WeftError
