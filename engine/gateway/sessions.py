"""Sessions of the SDK: each is a session with the broker, with a line of its own."""

import asyncio
import hashlib
import logging
import re
import secrets
import time
from collections.abc import Callable, Sequence
from functools import partial

import zmq

from ...client import wire
from ...client.errors import Conflict, EngineFailed, NotFound, WeftError
from ...client.limits import LIMITS
from ...client.messages import (
    SPOKEN_VERSIONS,
    CloseSampler,
    Command,
    CreateSampler,
    Hello,
    ModelCard,
    Query,
    Request,
    Sample,
)
from ...client.wire import Buffer
from .doors import CLIENT, Door
from .errors import failed_future
from .futures import Answer, Future, Futures, Kept
from .line import Line, Parts
from .unnamed import Unnamed

log = logging.getLogger(__name__)

_SESSION_ID = re.compile(r"[0-9a-f]{32}")


class Session:
    """One session of the SDK. Everything here runs in the loop's thread."""

    def __init__(self, tenant: str, line: Line, kept: Kept) -> None:
        self.session_id = line.session_id
        self.tenant = tenant
        self.line = line
        self.futures = Futures(kept)
        self.last_heard = time.monotonic()
        self.unnamed = Unnamed()
        self._events: dict[int | str, asyncio.Event] = {}  # of futures and of groups
        self._cards: dict[str, ModelCard] = {}  # of runs and samplers
        self._opening: dict[str, tuple[CreateSampler, asyncio.Future[Parts]]] = {}
        self._clones: dict[str, set[int]] = {}  # numbers given to the clones of a sampler

    def submit(
        self,
        headers: Sequence[Request],
        frames: Sequence[Sequence[Buffer]],
        convert: Callable[[Parts], Answer],
        group: str = "",
    ) -> Future:
        """Send a request whose answer is fetched later; a repeat gives the same future.

        Args:
            headers: one a part, all with the same number.
            frames: of each part.
            convert: makes the body of the response.
            group: of samples, what their completions are told together by.

        Raises:
            WeftError: a conflict, a sampler that was closed, or a header over its limit.
        """
        first = headers[0]
        messages = tuple(
            (_encode(header, parts), *parts) for header, parts in zip(headers, frames, strict=True)
        )
        digest = hashlib.blake2b(b"".join(message[0] for message in messages), digest_size=16)
        future, is_new = self.futures.open(first.request_id, digest.digest(), group)
        if is_new:
            try:
                self.unnamed.began(_sampler_of(group))
            except NotFound:
                self.futures.withdraw(first.request_id)
                raise
            sent = self.line.post(first, messages)
            sent.add_done_callback(partial(self._answered, future, convert))
        return future

    async def wait(self, number: int, timeout_s: float) -> Future:
        """Wait for the answer of a future, so long at most.

        Raises:
            WeftError: there is no such future.
        """
        future = self.futures.find(number)
        if future.answer is None and timeout_s > 0:
            since = time.monotonic()
            self.line.wait_began(number, since)
            try:
                await self._event(number, timeout_s)
            finally:
                self.line.wait_ended(number, since)
        return future

    async def wait_group(self, group: str, timeout_s: float) -> None:
        """Wait until a future of the group completes, so long at most."""
        await self._event(group, timeout_s)

    async def card(self, what: str, subject: str) -> ModelCard:
        """The base model of a run or sampler.

        Args:
            what: "run" or "sampler".
            subject: its id.

        Raises:
            NotFound: there is none, or its model is not served any more.
        """
        known = self._cards.get(subject)
        if known is None:
            query = Query(request_id=self.line.new_number(), what=what, subject=subject)
            name = (await self.line.request(query))["base_model"]
            welcome = self.line.welcome
            known = find_card([] if welcome is None else welcome.models, name)
            if known is None:
                capabilities = Query(request_id=self.line.new_number(), what="capabilities")
                found = (await self.line.request(capabilities))["models"]
                known = find_card([ModelCard(**card) for card in found], name)
            if known is None:
                raise NotFound(f"no worker serves the model {name!r} of {subject}")
            self._cards[subject] = known
        return known

    async def open_sampler(self, header: CreateSampler) -> None:
        """Open a sampler; whoever asks for the same meanwhile waits for the same.

        Raises:
            WeftError: it cannot be opened, or another is being opened under its id.
        """
        known = self._opening.get(header.sampler_id)
        if known is None:
            opened = self.line.send([header], [()])
            known = self._opening[header.sampler_id] = (header, opened)
            opened.add_done_callback(lambda _: self._opening.pop(header.sampler_id, None))
        first, opened = known
        if (first.base_model, first.model_path) != (header.base_model, header.model_path):
            raise Conflict(f"sampler {header.sampler_id} is being opened on something else")
        await asyncio.shield(opened)

    def keep_unnamed(self, run_id: str, sampler_id: str) -> None:
        """A run opens a sampler without a name; one that is used no more is closed for it."""
        for name in self.unnamed.opened(run_id, sampler_id):
            number = self.line.new_number()
            self.line.send([CloseSampler(request_id=number, sampler_id=name)], [()])

    def new_clone(self, sampler_id: str) -> int:
        """A number for one more client of a sampler, from 1 to 999,999,999."""
        taken = self._clones.setdefault(sampler_id, set())
        number = 1 + secrets.randbelow(999_999_999)
        while number in taken:
            number = 1 + secrets.randbelow(999_999_999)
        taken.add(number)
        return number

    def _answered(
        self, future: Future, convert: Callable[[Parts], Answer], sent: "asyncio.Future[Parts]"
    ) -> None:
        try:
            answer = convert(sent.result())
        except WeftError as error:
            answer = Answer(failed_future(error), is_failure=True)
        except asyncio.CancelledError:
            answer = Answer(failed_future(EngineFailed("the gateway ends")), is_failure=True)
        except Exception as error:  # the boundary to the broker's answers
            log.exception("an answer could not be converted")
            failure = EngineFailed(f"unexpected answer: {type(error).__name__}")
            answer = Answer(failed_future(failure), is_failure=True)
        self.unnamed.ended(_sampler_of(future.group))
        self.futures.settle(future.number, answer, time.monotonic())
        for key in (future.number, future.group):
            event = self._events.pop(key, None)
            if event is not None:
                event.set()

    async def _event(self, key: int | str, timeout_s: float) -> None:
        event = self._events.setdefault(key, asyncio.Event())
        try:
            async with asyncio.timeout(timeout_s):
                await event.wait()
        except TimeoutError:
            return


class Sessions:
    """The sessions of the SDK that this gateway serves, by id."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", address: str) -> None:
        self._context = context
        self._address = address
        self._sessions: dict[str, Session] = {}
        self._attaching: dict[tuple[str, str], asyncio.Task[Session]] = {}
        self.kept = Kept()

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def num_bytes(self) -> int:
        """Bytes of requests without an answer."""
        return sum(session.line.num_bytes for session in self._sessions.values())

    @property
    def num_futures(self) -> int:
        return sum(len(session.futures) for session in self._sessions.values())

    async def create(self, door: Door, hello: Hello) -> Session:
        """Open a session; a repeat finds it open."""
        known = self._sessions.get(hello.session_id)
        if known is not None and known.tenant == door.tenant:
            return known
        return await self._open(door, hello)

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

    def finish(self, session: Session) -> None:
        """End a session for good."""
        if self._sessions.get(session.session_id) is session:
            del self._sessions[session.session_id]
        session.line.close()
        session.futures.close()

    def sweep(self, now: float) -> None:
        """Drop answers that were kept long enough, and sessions that are silent or lost."""
        for session in list(self._sessions.values()):
            session.futures.expire(now)
            if now - session.last_heard > LIMITS["session_ttl_s"].default:
                self.finish(session)

    def close(self) -> None:
        """Leave all sessions to the broker, for a gateway that comes after this one."""
        for session in self._sessions.values():
            session.line.drop()
        self._sessions.clear()

    async def _attach(self, door: Door, session_id: str) -> Session:
        if not _SESSION_ID.fullmatch(session_id):
            raise _unknown(session_id)
        key = (session_id, door.tenant)
        task = self._attaching.get(key)
        if task is None:
            hello = Hello(
                versions=list(SPOKEN_VERSIONS),
                session_id=session_id,
                api_key=door.key,
                client=CLIENT,
                must_exist=True,
            )
            task = self._attaching[key] = asyncio.create_task(self._open(door, hello))
            task.add_done_callback(partial(self._attached, key))
        try:
            return await asyncio.shield(task)
        except WeftError as error:
            if error.code in ("session_expired", "conflict"):
                raise _unknown(session_id) from None
            raise

    def _attached(self, key: tuple[str, str], task: "asyncio.Task[Session]") -> None:
        self._attaching.pop(key, None)
        if not task.cancelled():
            task.exception()  # whoever asked may be gone

    async def _open(self, door: Door, hello: Hello) -> Session:
        line = Line(self._context, self._address, hello, self._lost)
        try:
            await line.request(Query(request_id=line.new_number(), what="capabilities"))
        except BaseException:
            line.drop()
            raise
        old = self._sessions.get(hello.session_id)
        session = Session(door.tenant, line, self.kept)
        if old is not None:  # its line was lost; what was answered can still be fetched
            session.futures = old.futures
        self._sessions[hello.session_id] = session
        return session

    def _lost(self, line: Line, error: WeftError) -> None:
        log.info("the session %s is lost: %s", line.session_id, error)


def find_card(cards: Sequence[ModelCard], name: str) -> ModelCard | None:
    """The card of a model by its name or another name it has."""
    return next((card for card in cards if name == card.name or name in card.aliases), None)


def _sampler_of(group: str) -> str:
    """The sampler of a group of samples, "" when it is none."""
    return group.rpartition("/")[0]


def _unknown(session_id: str) -> NotFound:
    return NotFound(f"no session {session_id[:80]!r}")


def _encode(header: Request, frames: Sequence[Buffer]) -> bytes:
    if isinstance(header, Command | Sample):
        return wire.encode_signed(header, frames)
    return wire.encode(header)
