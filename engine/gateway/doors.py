"""Who an API key is: one line to the broker for each key, which alone knows keys and tenants."""

import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import zmq

from ...client.errors import Unauthorized
from ...client.limits import LIMITS, limit
from ...client.messages import SPOKEN_VERSIONS, Hello, ModelCard, Query
from .line import Line
from .once import Once

CLIENT = "weft-gateway/1"
DOOR_TAG = "weft-gateway"  # of a session that is a key's own
_MAX_DOORS = limit("doors")
_WRONG_S = 2.0  # how long a wrong key stays wrong without another question
_MAX_WRONG = 1024
_MAX_KEY = 4096  # characters


@dataclass(slots=True, eq=False)
class Door:
    """A key that the broker has admitted."""

    key: str
    tenant: str
    line: Line  # a session of the key's own, for what belongs to no session of the SDK
    last_used: float
    num_users: int = 0  # requests under way

    @contextmanager
    def used(self) -> Iterator[None]:
        """Keep the door open while the block runs."""
        self.num_users += 1
        try:
            yield
        finally:
            self.num_users -= 1
            self.last_used = time.monotonic()

    @property
    def cards(self) -> list[ModelCard]:
        """The models that the broker had when it was reached last."""
        return [] if self.line.welcome is None else self.line.welcome.models

    def __repr__(self) -> str:
        return f"Door({self.tenant!r})"


class Doors:
    """The keys in use. A key that is revoked loses its line, and is asked for anew."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", address: str) -> None:
        self._context = context
        self._address = address
        self._doors: OrderedDict[bytes, Door] = OrderedDict()  # least recently used first
        self._opening: Once[bytes, Door] = Once("API keys are being looked at")
        self._wrong: OrderedDict[bytes, float] = OrderedDict()  # until when

    def __len__(self) -> int:
        return len(self._doors)

    async def admit(self, key: str) -> Door:
        """The door of a key.

        Raises:
            WeftError: `unauthorized`, or the broker does not answer.
        """
        if len(key) > _MAX_KEY or not key.isascii():
            raise _wrong()
        name = hashlib.sha256(key.encode()).digest()
        door = self._doors.get(name)
        if door is None or door.line.is_closed:
            now = time.monotonic()
            if self._wrong.get(name, now) > now:
                raise _wrong()
            door = await self._opening.do(name, lambda: self._open(name, key))
        door.last_used = time.monotonic()
        if name in self._doors:
            self._doors.move_to_end(name)
        return door

    def sweep(self, now: float) -> None:
        """Close the doors that nobody has used for long, and those over the limit; never one in use."""
        spare = len(self._doors) - _MAX_DOORS
        for name, door in list(self._doors.items()):
            if spare <= 0 and now - door.last_used <= LIMITS["door_s"].default:
                return
            if not door.num_users:
                del self._doors[name]
                door.line.close()
                spare -= 1

    def close(self) -> None:
        """Close all of them."""
        self._opening.close()
        for door in self._doors.values():
            door.line.close()
        self._doors.clear()

    async def _open(self, name: bytes, key: str) -> Door:
        hello = Hello(
            versions=list(SPOKEN_VERSIONS),
            session_id=secrets.token_hex(16),
            api_key=key,
            client=CLIENT,
            tags=[DOOR_TAG],
        )
        line = Line(self._context, self._address, hello)
        try:
            await line.request(Query(request_id=line.new_number(), what="capabilities"))
        except BaseException as error:
            line.drop()
            self._doors.pop(name, None)
            if isinstance(error, Unauthorized):
                self._wrong[name] = time.monotonic() + _WRONG_S
                self._wrong.move_to_end(name)
                if len(self._wrong) > _MAX_WRONG:
                    self._wrong.popitem(last=False)
                raise _wrong() from None
            raise
        tenant = "" if line.welcome is None else line.welcome.tenant
        door = self._doors[name] = Door(key, tenant, line, time.monotonic())
        self._doors.move_to_end(name)
        with door.used():
            self.sweep(door.last_used)
        return door


def _wrong() -> Unauthorized:
    return Unauthorized("the API key is missing or wrong")
