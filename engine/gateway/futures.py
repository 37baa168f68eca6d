"""The futures of one SDK session: opened by a post, settled by an answer, fetched by polls. Pure.

An answer is kept until well after it was fetched, since a reply can be lost on its way and is then
asked for again. What is over the bounds goes, the longest fetched first, and is `result_expired`.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from ...client.errors import Conflict, WeftError
from ...client.limits import LIMITS, limit

MAX_EXPIRED = 4096  # numbers remembered as expired


@dataclass(slots=True)
class Answer:
    """What a future came to: the body of the response that tells it."""

    body: bytes
    content_type: str = "application/json"
    is_failure: bool = False


@dataclass(slots=True)
class Future:
    """One request of the SDK that is answered later."""

    number: int  # of the request on the line to the broker
    digest: bytes  # of what was asked
    group: str = ""  # of samples: sampler and clone, whose completions are told together
    answer: Answer | None = None
    settled_at: float = 0.0
    fetched_at: float | None = None  # for the first time


@dataclass(slots=True)
class _Group:
    """Futures that completed, with a cursor each."""

    cursor: int = 0
    done: deque[tuple[int, int]] = field(default_factory=deque)  # cursor, number


class Kept:
    """Bytes of answers that are kept, of all sessions together."""

    def __init__(self, max_bytes: int = limit("total_result_bytes")) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0


class Futures:
    """The futures of one session, by number."""

    def __init__(self, kept: Kept, max_bytes: int = limit("result_bytes")) -> None:
        self._kept = kept
        self._max_bytes = max_bytes
        self._futures: dict[int, Future] = {}
        self._settled: OrderedDict[int, None] = OrderedDict()  # those not fetched, oldest first
        self._fetched: OrderedDict[int, None] = OrderedDict()  # those fetched, oldest first
        self._expired: OrderedDict[int, None] = OrderedDict()
        self._groups: dict[str, _Group] = {}
        self.num_bytes = 0  # of the answers

    def __len__(self) -> int:
        return len(self._futures)

    def open(self, number: int, digest: bytes, group: str = "") -> tuple[Future, bool]:
        """The future of a request, and whether it is new.

        Raises:
            Conflict: the number was used for something else.
            WeftError: `result_expired`, it was answered too long ago.
        """
        known = self._futures.get(number)
        if known is None and number in self._expired:
            raise WeftError("the request was answered, and its result is gone", "result_expired")
        if known is None:
            known = self._futures[number] = Future(number, digest, group)
            return known, True
        if known.digest != digest:
            raise Conflict("another request was sent under the same number")
        return known, False

    def find(self, number: int) -> Future:
        """A future that was opened.

        Raises:
            WeftError: `result_expired`, unknown or no longer kept.
        """
        known = self._futures.get(number)
        if known is None:
            raise WeftError("there is no such future, or its result is gone", "result_expired")
        return known

    def withdraw(self, number: int) -> None:
        """Forget a future whose request was refused at the door."""
        self._futures.pop(number, None)

    def settle(self, number: int, answer: Answer, now: float) -> None:
        """Keep an answer."""
        future = self._futures.get(number)
        if future is None or future.answer is not None:
            return
        future.answer, future.settled_at = answer, now
        self._settled[number] = None
        self.num_bytes += len(answer.body)
        self._kept.num_bytes += len(answer.body)
        if future.group:
            group = self._groups.setdefault(future.group, _Group())
            group.cursor += 1
            group.done.append((group.cursor, number))
        self._make_room(number)

    def fetched(self, number: int, now: float) -> None:
        """An answer was sent."""
        future = self._futures.get(number)
        if future is not None and future.answer is not None and future.fetched_at is None:
            future.fetched_at = now
            self._settled.pop(number)
            self._fetched[number] = None

    def completions(self, group: str, cursor: int) -> tuple[list[Future], int]:
        """The futures of a group that completed after a cursor, and the cursor after them.

        Those up to the given cursor are told no more.
        """
        known = self._groups.get(group)
        if known is None:
            return [], cursor
        while known.done and known.done[0][0] <= cursor:
            known.done.popleft()
        found = [self._futures[number] for _, number in known.done if number in self._futures]
        return found, known.done[-1][0] if known.done else max(cursor, known.cursor)

    def acknowledge(self, numbers: Iterable[int]) -> None:
        """The SDK has these answers and will not ask for them again."""
        for number in numbers:
            future = self._futures.get(number)
            if future is not None and future.answer is not None:
                self._forget(future)

    def expire(self, now: float) -> None:
        """Drop what was kept long enough."""
        for kept, since in ((self._fetched, "fetched_at"), (self._settled, "settled_at")):
            limit_s = LIMITS[
                "fetched_ttl_s" if since == "fetched_at" else "unfetched_ttl_s"
            ].default
            while kept:
                future = self._futures[next(iter(kept))]
                if now - getattr(future, since) <= limit_s:
                    break
                self._forget(future)

    def close(self) -> None:
        """Drop everything: the session has ended."""
        for future in list(self._futures.values()):
            if future.answer is not None:
                self._forget(future)
        self._futures.clear()

    def _make_room(self, newest: int) -> None:
        """Drop what is over the bounds, but never the newest."""
        for kept in (self._fetched, self._settled):
            while kept and self._is_over():
                number = next(iter(kept))
                if number == newest:
                    break
                self._forget(self._futures[number])

    def _is_over(self) -> bool:
        return self.num_bytes > self._max_bytes or self._kept.num_bytes > self._kept.max_bytes

    def _forget(self, future: Future) -> None:
        assert future.answer is not None
        del self._futures[future.number]
        self._fetched.pop(future.number, None)
        self._settled.pop(future.number, None)
        self.num_bytes -= len(future.answer.body)
        self._kept.num_bytes -= len(future.answer.body)
        self._expired[future.number] = None
        if len(self._expired) > MAX_EXPIRED:
            self._expired.popitem(last=False)
