"""One request on its way through the broker, from its first part to its acknowledged answer."""

from collections.abc import Mapping, Sequence
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ...client.limits import limit
from ...client.messages import Failure, ForwardBackward, Header, ModelCard, Request, Sample
from .events import Frames

if TYPE_CHECKING:
    from .leases import Run, Sampler, Window, Worker
    from .sessions import Session

FORWARD_WEIGHT = limit("forward_weight")
BACKWARD_WEIGHT = limit("backward_weight")
DECODE_WEIGHT = limit("decode_weight")
REQUEST_WEIGHT = limit("request_weight")
# A token travels in 4 to 28 bytes, and each further target in 8; whoever declares fewer tokens than
# this is not believed.
MAX_BYTES_A_TOKEN = 32

NO_USAGE: Mapping[str, int] = MappingProxyType({})

Part = tuple[Header | None, Frames]  # of an answer: header to encode, or None when encoded


class State(Enum):
    """Where a request is."""

    HELD = "held"  # parts or lower numbers are missing
    QUEUED = "queued"  # in a lane, or waiting for a worker or a sampler
    DISPATCHED = "dispatched"
    STORING = "storing"  # a job of the store will answer it
    SETTLED = "settled"  # the outcome is known, the journal has not got it yet
    FINISHED = "finished"  # answered; kept until acknowledged
    FORGOTTEN = "forgotten"


class Work:
    """A request, what has arrived of it, and what became of it."""

    __slots__ = (
        "also",
        "answer",
        "answer_bytes",
        "arrived",
        "digests",
        "dispatch_id",
        "epoch",
        "fork",
        "header",
        "lane",
        "missing",
        "model",
        "num_tokens",
        "parts",
        "progress",
        "replies",
        "request_id",
        "reserved",
        "run",
        "sampler",
        "seq",
        "session",
        "size",
        "state",
        "ticket",
        "usage",
        "weight",
        "window",
        "worker",
    )

    def __init__(self, session: "Session", header: Request, lane: str, num_parts: int = 1) -> None:
        self.session = session
        self.header = header
        self.request_id = header.request_id
        self.lane = lane
        self.run: Run | None = None  # of a command
        self.seq = -1
        self.sampler: Sampler | None = None  # that a sample goes to, or that the request opens
        self.fork: Run | None = None  # the run that a fork_run makes
        self.model = ""  # any worker with this base model may serve it
        self.state = State.HELD
        self.missing = num_parts
        self.parts: list[Frames] = [()] * num_parts  # empty while they are missing
        self.digests: list[bytes | None] = [None] * num_parts
        self.num_tokens = 0
        self.size = 0  # bytes of payload that have arrived
        self.arrived = 0.0  # when the last of it came
        self.reserved = 0  # bytes counted against its session's credit
        self.weight = 0
        self.window: Window | None = None  # whose lanes or credit it occupies
        self.ticket = -1  # of its place in the window's lanes
        self.worker: Worker | None = None  # that it was dispatched to
        self.dispatch_id = 0
        self.epoch = 0
        self.progress = (-1, -1)  # units computed and units in all, as the worker last said
        self.replies: list[Frames | None] | None = None  # parts of the worker's answer so far
        self.usage: Mapping[str, int] = NO_USAGE
        self.answer: Sequence[Part] = ()
        self.answer_bytes = 0
        self.also: tuple[tuple[Session, int], ...] = ()  # further askers: session, request id

    def add_part(
        self, part: int, digest: bytes, frames: Frames, size: int, header: Request
    ) -> None:
        """Take one part that was missing."""
        self.parts[part] = frames
        self.digests[part] = digest
        self.missing -= 1
        self.size += size
        if type(header) is ForwardBackward:
            self.num_tokens += max(header.num_tokens, size // MAX_BYTES_A_TOKEN)

    def weigh(self, model: ModelCard) -> int:
        """Set and return the weighted tokens it takes from a worker's credit."""
        header = self.header
        if type(header) is ForwardBackward:
            each = FORWARD_WEIGHT if header.forward_only else BACKWARD_WEIGHT
            self.weight = each * self.num_tokens + 1
        elif type(header) is Sample:
            room = max(model.max_context - header.num_tokens, 1)
            new = room if header.max_tokens < 0 else min(header.max_tokens, room)
            prompt = max(header.num_tokens, self.size // MAX_BYTES_A_TOKEN)
            self.weight = FORWARD_WEIGHT * prompt + DECODE_WEIGHT * new * header.num_samples + 1
        else:
            self.weight = REQUEST_WEIGHT
        return self.weight

    def ids(self) -> dict[str, Any]:
        """What names it, for events and the log."""
        ids = {"kind": self.header.kind, "lane": self.lane, "request_id": self.request_id}
        return ids if self.run is None else ids | {"run_id": self.run.run_id, "seq": self.seq}

    @property
    def is_waiting(self) -> bool:
        """Whether no worker has it yet, and none needs to know when it is dropped."""
        return self.state in (State.HELD, State.QUEUED)

    @property
    def is_underway(self) -> bool:
        """Whether it is on its way to an outcome that is not known."""
        return self.state in (State.QUEUED, State.DISPATCHED, State.STORING)

    @property
    def is_over(self) -> bool:
        """Whether its outcome is known."""
        return not (self.is_waiting or self.is_underway)

    @property
    def has_arrived(self) -> bool:
        """Whether nothing of it need be sent again."""
        return not self.missing or self.state is not State.HELD

    @property
    def code(self) -> str:
        """The error code it was answered with, "" for a success or none yet."""
        first = self.answer[0][0] if self.answer else None
        return first.code if isinstance(first, Failure) else ""
