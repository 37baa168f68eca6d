"""Who an API key is: one line to the broker for each key, which alone knows keys and tenants."""

import asyncio
import hashlib
import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial

import zmq

from ...client.errors import WeftError
from ...client.limits import LIMITS, limit
from ...client.messages import SPOKEN_VERSIONS, Hello, ModelCard, Query
from .line import Line

CLIENT = "weft-gateway/1"
_MAX_DOORS = limit("doors")
_WRONG_S = 2.0  # how long a wrong key stays wrong without another question
_MAX_WRONG = 1024
_MAX_OPENING = 16  # keys that are asked for at a time


@dataclass(slots=True, eq=False)
class Door:
    """A key that the broker has admitted."""

    key: str
    tenant: str
    line: Line  # a session of the key's own, for what belongs to no session of the SDK
    last_used: float

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
        self._opening: dict[bytes, asyncio.Task[Door]] = {}
        self._wrong: OrderedDict[bytes, float] = OrderedDict()  # until when
        self._turns = asyncio.Semaphore(_MAX_OPENING)

    def __len__(self) -> int:
        return len(self._doors)

    async def admit(self, key: str) -> Door:
        """The door of a key.

        Raises:
            WeftError: `unauthorized`, or the broker does not answer.
        """
        name = hashlib.sha256(key.encode()).digest()
        door = self._doors.get(name)
        if door is None or door.line.is_closed:
            now = time.monotonic()
            if self._wrong.get(name, now) > now:
                raise WeftError("the API key is missing or wrong", "unauthorized")
            task = self._opening.get(name)
            if task is None:
                task = self._opening[name] = asyncio.create_task(self._open(name, key))
                task.add_done_callback(partial(self._opened, name))
            door = await asyncio.shield(task)
        door.last_used = time.monotonic()
        self._doors.move_to_end(name)
        return door

    def sweep(self, now: float) -> None:
        """Close the doors that nobody has used for long."""
        while self._doors:
            name, door = next(iter(self._doors.items()))
            if len(self._doors) <= _MAX_DOORS and now - door.last_used <= LIMITS["door_s"].default:
                return
            del self._doors[name]
            door.line.close()

    def close(self) -> None:
        """Close all of them."""
        for door in self._doors.values():
            door.line.close()
        self._doors.clear()

    def _opened(self, name: bytes, task: "asyncio.Task[Door]") -> None:
        self._opening.pop(name, None)
        if not task.cancelled():
            task.exception()  # whoever asked may be gone

    async def _open(self, name: bytes, key: str) -> Door:
        hello = Hello(
            versions=list(SPOKEN_VERSIONS),
            session_id=secrets.token_hex(16),
            api_key=key,
            client=CLIENT,
        )
        async with self._turns:
            line = Line(self._context, self._address, hello)
            try:
                await line.request(Query(request_id=line.new_number(), what="capabilities"))
            except WeftError as error:
                line.drop()
                if error.code == "unauthorized":
                    self._wrong[name] = time.monotonic() + _WRONG_S
                    if len(self._wrong) > _MAX_WRONG:
                        self._wrong.popitem(last=False)
                raise
        tenant = "" if line.welcome is None else line.welcome.tenant
        door = self._doors[name] = Door(key, tenant, line, time.monotonic())
        self.sweep(door.last_used)
        return door
