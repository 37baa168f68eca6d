"""One session of the SDK: a session with the broker, its line, its futures and who waits for them."""

import asyncio
import hashlib
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count

from ...client import wire
from ...client.errors import Busy, Conflict, EngineFailed, NotFound, WeftError
from ...client.messages import CloseSampler, CreateSampler, ModelCard, Query, Request
from ...client.model_cards import find_card
from ...client.wire import Buffer
from .errors import failed_future
from .futures import Answer, Future, Futures, Kept
from .line import Line, Parts
from .unnamed import Unnamed

log = logging.getLogger(__name__)

MAX_CLONE = 999_999_999
_MAX_CARDS = 4096  # runs and samplers whose model a session remembers


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
            (wire.encode_request(header, parts), *parts)
            for header, parts in zip(headers, frames, strict=True)
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
            Busy: workers are still loading.
        """
        known = self._cards.get(subject)
        if known is None:
            query = Query(request_id=self.line.new_number(), what=what, subject=subject)
            name = (await self.line.request(query))["base_model"]
            welcome = self.line.welcome
            known = find_card([] if welcome is None else welcome.models, name)
            if known is None:
                capabilities = Query(request_id=self.line.new_number(), what="capabilities")
                served = await self.line.request(capabilities)
                known = find_card([ModelCard(**card) for card in served["models"]], name)
                if known is None and served["state"] == "loading":
                    raise Busy(f"no worker has loaded the model {name!r} yet")
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


def _sampler_of(group: str) -> str:
    """The sampler of a group of samples, "" when it is none."""
    return group.rpartition("/")[0]
