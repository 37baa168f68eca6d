"""The sessions of the SDK that a gateway serves: opened, found again after a restart, ended."""

import logging
import re
import time
from functools import partial

import zmq

from ...client.errors import NotFound, WeftError
from ...client.limits import LIMITS
from ...client.messages import SPOKEN_VERSIONS, Hello, Query
from .doors import CLIENT, Door
from .futures import Kept
from .line import Line
from .load import Load
from .once import Once
from .session import Session

log = logging.getLogger(__name__)

_SESSION_ID = re.compile(r"[0-9a-f]{32}")


class Sessions:
    """The sessions of the SDK that this gateway serves, by id."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", address: str) -> None:
        self._context = context
        self._address = address
        self._sessions: dict[str, Session] = {}
        # By id and tenant.
        self._opening: Once[tuple[str, str], Session] = Once("sessions are being opened")
        self.kept = Kept()
        self.load = Load()

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def num_futures(self) -> int:
        return sum(len(session.futures) for session in self._sessions.values())

    async def create(self, door: Door, hello: Hello) -> Session:
        """Open a session; a repeat finds it open."""
        known = self._sessions.get(hello.session_id)
        if known is not None and known.tenant == door.tenant and not known.line.is_closed:
            return known
        return await self._once(door, hello)

    async def find(self, door: Door, session_id: str) -> Session:
        """A session of the caller, whichever gateway or key opened it.

        Raises:
            NotFound: there is none, or it is another tenant's.
        """
        session = self._sessions.get(session_id)
        if session is None or session.line.is_closed:
            session = await self._attach(door, session_id)
        if session.tenant != door.tenant:
            raise _unknown(session_id)
        session.last_heard = time.monotonic()
        return session

    def finish(self, session: Session, ending: str = "") -> None:
        """End a session for good, and say why."""
        if self._sessions.get(session.session_id) is session:
            del self._sessions[session.session_id]
        session.line.close(ending)
        session.futures.close()

    def sweep(self, now: float) -> None:
        """Drop answers that were kept long enough, and sessions of which nobody has asked for long."""
        for session in list(self._sessions.values()):
            session.futures.expire(now)
            if now - session.last_heard > LIMITS["session_ttl_s"].default:
                self.finish(session)

    def wake(self) -> None:
        """End all waits: the gateway stops."""
        for session in self._sessions.values():
            session.wake()

    def close(self) -> None:
        """Leave all sessions to the broker, for a gateway that comes after this one."""
        self._opening.close()
        for session in self._sessions.values():
            session.line.drop()
        self._sessions.clear()

    async def _attach(self, door: Door, session_id: str) -> Session:
        if not _SESSION_ID.fullmatch(session_id):
            raise _unknown(session_id)
        hello = Hello(
            versions=list(SPOKEN_VERSIONS),
            session_id=session_id,
            api_key=door.key,
            client=CLIENT,
            must_exist=True,
        )
        try:
            return await self._once(door, hello)
        except WeftError as error:
            if error.code in ("session_expired", "conflict"):
                raise _unknown(session_id) from None
            raise

    async def _once(self, door: Door, hello: Hello) -> Session:
        """Open a session, or wait for whoever is opening it."""
        key = (hello.session_id, door.tenant)
        return await self._opening.do(key, lambda: self._open(door, hello))

    async def _open(self, door: Door, hello: Hello) -> Session:
        on_bytes = partial(self.load.add, door.tenant)
        line = Line(self._context, self._address, hello, self._lost, on_bytes)
        try:
            await line.request(Query(request_id=line.new_number(), what="capabilities"))
        except BaseException:
            line.drop()
            raise
        session = self._sessions.get(hello.session_id)
        if session is not None and session.tenant == door.tenant and hello.must_exist:
            session.line = line  # the one before was lost; what was answered can still be fetched
        else:
            session = self._sessions[hello.session_id] = Session(door.tenant, line, self.kept)
        return session

    def _lost(self, line: Line, error: WeftError) -> None:
        log.info("the session %s is lost: %s", line.session_id, error)


def _unknown(session_id: str) -> NotFound:
    return NotFound(f"no session {session_id[:80]!r}")
