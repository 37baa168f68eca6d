"""What a connection sends and what it decides to do: the records that `link.py` gives out."""

from dataclasses import dataclass

from .errors import WeftError
from .messages import Event, Reply, Welcome
from .wire import Buffer


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A request as it is sent: one message a part."""

    request_id: int
    what: str  # its kind, for people
    messages: tuple[tuple[Buffer, ...], ...]
    order: tuple[str, int] | None = None  # run and number, of a command
    cancels: int = 0  # the request that this one is to withdraw


@dataclass(frozen=True, slots=True)
class AnswerPart:
    reply: Reply
    frames: tuple[Buffer, ...]


@dataclass(frozen=True, slots=True)
class Connect:
    """Throw the socket away, and what is queued in it, and open a new one."""


@dataclass(frozen=True, slots=True)
class Send:
    message: tuple[Buffer, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """A request succeeded."""

    request_id: int
    parts: tuple[AnswerPart, ...]


@dataclass(frozen=True, slots=True)
class Fail:
    """A request failed."""

    request_id: int
    error: WeftError
    is_unsent: bool = False  # the broker has not taken it: its number, if any, is to be given up


@dataclass(frozen=True, slots=True)
class Greeted:
    """The broker welcomed this client, for the first time or again."""

    welcome: Welcome


@dataclass(frozen=True, slots=True)
class Lost:
    """The connection is given up; every request has failed."""

    error: WeftError


@dataclass(frozen=True, slots=True)
class Happened:
    event: Event


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask the server why these requests wait."""

    request_ids: tuple[int, ...]


Action = Connect | Send | Answer | Fail | Greeted | Lost | Happened | Ask
