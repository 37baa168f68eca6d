"""What a route is given and what it gives: no HTTP library beyond this file and the app's."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from ...client.errors import WeftError
from ...client.messages import Query
from ...client.paths import SCHEME, CheckpointPath, parse_path
from .counters import GatewayCounters
from .doors import Door, Doors
from .downloads import FileLinks
from .session import Session
from .sessions import Sessions

T = TypeVar("T")

JSON = "application/json"
PROTOBUF = "application/x-protobuf"
CHECKPOINT = "/api/v1/training_runs/{run_id}/checkpoints/{kind}/{name}"  # begins some routes


@dataclass(frozen=True, slots=True)
class Reply:
    """A response."""

    body: bytes = b"{}"
    content_type: str = JSON
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Gateway:
    """What all routes share."""

    doors: Doors
    sessions: Sessions
    counters: GatewayCounters
    links: FileLinks
    poll_s: float
    public_url: str = ""  # where the SDK reaches the gateway, "" takes it from the request


@dataclass(slots=True)
class Call:
    """One request of a caller who has been admitted."""

    gateway: Gateway
    door: Door
    body: bytes
    parts: Mapping[str, str]  # of the path, by the names in the route
    query: Mapping[str, str]
    headers: Mapping[str, str]
    origin: str  # scheme and host under which the caller reached us
    is_near: bool  # on this machine, as far as can be seen
    fields: dict[str, str] = field(default_factory=dict)  # ids for the log
    refusal: WeftError | None = None  # of the body, of which only the begin is here

    async def session(self, session_id: str) -> Session:
        """A session of the caller; raises NotFound."""
        self.fields["session_id"] = session_id[:80]
        return await self.gateway.sessions.find(self.door, session_id)

    async def owner_of(self, object_id: str) -> Session:
        """The caller's session that a run or sampler id belongs to; raises NotFound."""
        self.fields["object_id"] = object_id[:80]
        return await self.session(object_id.partition(":")[0])

    def checkpoint(self) -> CheckpointPath:
        """The checkpoint that the path of a route below `CHECKPOINT` names; raises BadRequest."""
        parts = self.parts
        return parse_path(f"{SCHEME}{parts['run_id']}/{parts['kind']}/{parts['name']}")

    async def ask(self, what: str, subject: str = "", **options: Any) -> dict[str, Any]:
        """Query the broker's books as the caller."""
        line = self.door.line
        query = Query(request_id=line.new_number(), what=what, subject=subject, **options)
        return await line.request(query)


Handler = Callable[[Call], Awaitable[Reply]]


@dataclass(frozen=True, slots=True)
class Route:
    """A method and path of the SDK, and what serves it."""

    method: str
    path: str  # with names in braces, as aiohttp writes them
    handler: Handler
    takes_query: bool = False
    # It is called with the begin of a body that is refused, too, to use its number up.
    takes_begin: bool = False


def json_reply(value: object) -> Reply:
    """A response with plain data."""
    return Reply(msgspec.json.encode(value))
