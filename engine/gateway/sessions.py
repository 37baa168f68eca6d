"""Sessions of the SDK: each is a session with the broker, with a line of its own."""

import asyncio
import hashlib
import logging
import re
import secrets
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count

import zmq

from ...client import wire
from ...client.errors import Busy, Conflict, EngineFailed, NotFound, WeftError
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
from .load import Load
from .unnamed import Unnamed

log = logging.getLogger(__name__)

MAX_CLONE = 999_999_999
_SESSION_ID = re.compile(r"[0-9a-f]{32}")
_MAX_CARDS = 4096  # runs and samplers whose model a session remembers
_MAX_OPENING = 16  # sessions that are asked for at a time
_MAX_QUEUED = 256  # and that wait for their turn


class Session:
    """One session of the SDK. Everything here runs in the loop's thread."""

    def __init__(self, tenant: str, line: Line, kept: Kept) -> None:
        self.session_id = line.session_id
        self.tenant = tenant
        self.line = line
        # By the clock: cursors that a gateway before this one gave out are all lower.
        self.futures = Futures(kept, cursor=time.time_ns() // 1000)
        self.last_heard = time.monotonic()
        self.unnamed = Unnamed()
        self._bells: dict[int | str, asyncio.Future[None]] = {}  # of futures and of groups
        self._cards: dict[str, ModelCard] = {}  # of runs and samplers
        self._opening: dict[str, tuple[CreateSampler, asyncio.Future[Parts]]] = {}
        self._clones = count(secrets.randbelow(MAX_CLONE))  # numbers given to clones of samplers

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
            line, since = self.line, time.monotonic()
            line.wait_began(number, since)
            try:
                await self._ring(number, timeout_s)
            finally:
                line.wait_ended(number, since)
        return future

    async def wait_group(self, group: str, timeout_s: float) -> None:
        """Wait until a future of the group completes, so long at most.

        Raises:
            WeftError: `result_expired`, none ever will.
        """
        if not self.futures.is_awaited(group):
            raise WeftError("nothing is under way there, or its results are gone", "result_expired")
        await self._ring(group, timeout_s)

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
            if len(self._cards) > _MAX_CARDS:
                del self._cards[next(iter(self._cards))]
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

    def new_clone(self) -> int:
        """A number for one more client of a sampler, from 1 to 999,999,999."""
        return 1 + next(self._clones) % MAX_CLONE

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
            bell = self._bells.pop(key, None)
            if bell is not None:
                bell.set_result(None)

    def wake(self) -> None:
        """End all waits."""
        while self._bells:
            self._bells.popitem()[1].set_result(None)

    async def _ring(self, key: int | str, timeout_s: float) -> None:
        bell = self._bells.get(key)
        if bell is None:
            bell = self._bells[key] = asyncio.get_running_loop().create_future()
        await asyncio.wait([bell], timeout=timeout_s)


class Sessions:
    """The sessions of the SDK that this gateway serves, by id."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", address: str) -> None:
        self._context = context
        self._address = address
        self._sessions: dict[str, Session] = {}
        self._opening: dict[tuple[str, str], asyncio.Task[Session]] = {}  # by id and tenant
        self._turns = asyncio.Semaphore(_MAX_OPENING)
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
        """Drop answers that were kept long enough, and sessions that are silent or lost."""
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
        for task in self._opening.values():
            task.cancel()
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
        task = self._opening.get(key)
        if task is None:
            if len(self._opening) >= _MAX_QUEUED:
                raise Busy(f"{len(self._opening)} sessions are being opened")
            task = self._opening[key] = asyncio.create_task(self._open(door, hello))
            task.add_done_callback(partial(self._opened, key))
        return await asyncio.shield(task)

    def _opened(self, key: tuple[str, str], task: "asyncio.Task[Session]") -> None:
        del self._opening[key]
        if not task.cancelled():
            task.exception()  # whoever asked may be gone

    async def _open(self, door: Door, hello: Hello) -> Session:
        async with self._turns:
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
