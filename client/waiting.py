"""Why a request is not answered yet: one frozen record, and the table of its codes."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeGuard

from .errors import EngineFailed


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why a request waits; a number that says nothing here is -1."""

    code: str  # of `REASONS`
    detail: str  # a sentence for people
    place: int = -1  # in the queue of its own session; 1 is next
    ahead: int = -1  # requests of other sessions that may go before it
    sessions: int = -1  # how many sessions those belong to
    seq: int = -1  # the number of its run that it waits for
    done: int = -1  # of `total`: parts that have come, or units that are computed
    total: int = -1
    fraction: float = -1.0  # of a phase of loading, 0 to 1
    retry_s: float = -1.0  # until it is tried again

    def __str__(self) -> str:
        return self.detail

    def to_fields(self) -> dict[str, Any]:
        """What differs from the defaults, as it travels."""
        values = asdict(self)
        return {
            field.name: values[field.name]
            for field in fields(self)
            if values[field.name] != field.default
        }


@dataclass(frozen=True, slots=True)
class Meaning:
    """One row of the table of reasons."""

    told_by: str  # "client" or "server"
    meaning: str
    remedy: str  # what helps


REASONS: dict[str, Meaning] = {
    "connecting": Meaning(
        "client", "the server has not been reached yet", "start the server, or mend the address"
    ),
    "reconnecting": Meaning(
        "client", "the server was reached and is silent", "it ends by itself; no request is lost"
    ),
    "paused": Meaning(
        "client", "the server has no room for it, and it is sent again soon", "wait, or send less"
    ),
    "sent": Meaning(
        "client", "it was sent, and the server has not been asked why", "it ends by itself"
    ),
    "computing": Meaning("client", "a function of yours computes", "a faster function"),
    "unknown": Meaning(
        "server", "the server does not know it, or not any more", "it ends by itself"
    ),
    "parts": Meaning("server", "parts of the call are still on their way", "a faster link"),
    "number": Meaning(
        "server",
        "an earlier number of its run has not come",
        "the client that has it, or close the run",
    ),
    "opening": Meaning("server", "its run or sampler is being opened", "see that request"),
    "forking": Meaning("server", "a fork before it is being made", "see that request"),
    "no_worker": Meaning("server", "no worker has connected yet", "start a worker"),
    "loading": Meaning("server", "the model is being loaded", "it ends by itself"),
    "restarting": Meaning("server", "the worker died and is started again", "it ends by itself"),
    "queued": Meaning("server", "requests before it wait for a worker", "less load"),
    "credit": Meaning("server", "it is next, and the worker has enough to do", "less load"),
    "dispatched": Meaning("server", "the worker has it", "it ends by itself"),
    "running": Meaning("server", "the worker computes it, and has got so far", "it ends by itself"),
    "storing": Meaning("server", "the store of checkpoints works on it", "it ends by itself"),
    "recording": Meaning(
        "server", "it is done, and its outcome is being written", "it ends by itself"
    ),
    "answered": Meaning("server", "its answer is on its way", "a faster link"),
    "stopping": Meaning(
        "server", "the server stops, and finishes what has started", "it ends by itself"
    ),
}


def describe_phase(phase: str, fraction: float) -> str:
    """How far something has loaded, such as "reading weights, 40 %"."""
    return phase if fraction < 0 else f"{phase}, {100 * fraction:.0f} %"


def read_reasons(result: Mapping[str, Any], request_ids: Sequence[int]) -> dict[int, Reason]:
    """The reasons in the answer to an `Explain`, by request.

    Raises:
        EngineFailed: they are not one well-formed reason a request.
    """
    entries = result.get("reasons")
    if not _is_list(entries) or len(entries) != len(request_ids):
        raise EngineFailed(f"no {len(request_ids)} reasons in an answer")
    return {number: _read(entry) for number, entry in zip(request_ids, entries, strict=True)}


_TYPES = {field.name: field.type for field in fields(Reason)}


def _read(entry: object) -> Reason:
    if not _is_map(entry) or not {"code", "detail"} <= entry.keys() <= _TYPES.keys():
        raise EngineFailed(f"{entry!r} in an answer is no reason")
    for name, value in entry.items():
        if type(value) is not _TYPES[name]:
            raise EngineFailed(f"a reason's {name} is {value!r} in an answer")
    return Reason(**entry)


def _is_list(value: object) -> TypeGuard[list[Any]]:
    return isinstance(value, list)


def _is_map(value: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)
