"""What goes into the broker's core and what comes out: events and actions, as frozen records.

A frame is opaque here: bytes, or whatever the shell received. The first frame of a message is its
encoded header, in bytes.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from ...client.messages import Header
from ..files.checkpoint import Checkpoint
from ..files.jobs import Job, JobResult
from .journal import Record
from .key_book import KeyBook


class Frame(Protocol):
    """Raw bytes of one frame."""

    def __len__(self) -> int: ...


Frames = Sequence[Frame]


# Events.


class ClientMessage(NamedTuple):
    """A message of a client. `frames` is all of it, the encoded header first."""

    peer: bytes
    header: Header
    frames: Frames


class MalformedMessage(NamedTuple):
    """A client's message that is refused before its content is believed.

    What could be read of it is given, so that the request fails and its number is used up.
    """

    peer: bytes
    code: str
    detail: str
    request_id: int = 0
    run_id: str = ""
    seq: int = -1


class ClientGone(NamedTuple):
    """Messages to this client are not delivered; it says hello again if it lives."""

    peer: bytes


class WorkerMessage(NamedTuple):
    """A message of a worker. `frames` is what follows the header: a Reply and its payload."""

    peer: bytes
    header: Header
    frames: Frames = ()


class WorkerGone(NamedTuple):
    """The worker cannot be reached, or its process has ended."""

    worker_id: str
    detail: str


class WorkerUnreachable(NamedTuple):
    """Messages to this peer of the back are not delivered."""

    peer: bytes


class WorkerAwaited(NamedTuple):
    """A worker is about to be started again; the sentence says why."""

    detail: str


class NoWorker(NamedTuple):
    """No worker will come any more; the sentence says why."""

    detail: str


class Tick(NamedTuple):
    """Time has passed; sent about once a second.

    Machines sleep and clocks are put right, so it says what is to be added to `now` for seconds
    since the epoch; None: as before.
    """

    wall_offset: float | None = None


class Persisted(NamedTuple):
    """All records up to this number are durable."""

    number: int


class CatalogLoaded(NamedTuple):
    """Checkpoints found at the start."""

    checkpoints: tuple[Checkpoint, ...]


class StoreDone(NamedTuple):
    """The store has done a job, or failed at it."""

    number: int
    result: JobResult


class KeysChanged(NamedTuple):
    """Other API keys count from now on."""

    keys: KeyBook


class StopRequested(NamedTuple):
    """Finish what was dispatched, refuse the rest, then end."""


Event = (
    ClientMessage
    | MalformedMessage
    | ClientGone
    | WorkerMessage
    | WorkerGone
    | WorkerUnreachable
    | WorkerAwaited
    | NoWorker
    | Tick
    | Persisted
    | CatalogLoaded
    | StoreDone
    | KeysChanged
    | StopRequested
)


# Actions.


class ToClient(NamedTuple):
    """Send `header` and `frames`; without a header, `frames` begins with an encoded one."""

    peer: bytes
    header: Header | None
    frames: Frames = ()


class ToWorker(NamedTuple):
    """Send `header` and `frames` to a worker."""

    peer: bytes
    header: Header
    frames: Frames = ()


class Persist(NamedTuple):
    """Write a record to the journal; `Persisted` says when it is durable."""

    number: int
    record: Record


class StoreJob(NamedTuple):
    """Hand a job to the store; `StoreDone` says how it went. Jobs are done in their order."""

    number: int
    job: Job


class Noted(NamedTuple):
    """Something for the log; `tenant` is whose it is, "" for the workers'."""

    name: str
    tenant: str
    fields: Mapping[str, Any]


class WorkerLost(NamedTuple):
    """The worker has lost its leases: whoever started it may end it, and start another."""

    worker_id: str
    detail: str


class Finished(NamedTuple):
    """The broker has stopped; nothing more will be sent."""


Action = ToClient | ToWorker | Persist | StoreJob | Noted | WorkerLost | Finished
