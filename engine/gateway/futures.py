"""The futures of one SDK session: opened by a post, settled by an answer, fetched by polls. Pure.

An answer is kept until well after it was fetched, since a reply can be lost on its way and is then
asked for again. What is over the bounds goes, the longest fetched first, and is `result_expired`.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from ...client.errors import Busy, Conflict, WeftError
from ...client.limits import LIMITS, limit

MAX_EXPIRED = 4096  # numbers remembered as expired
MAX_UNANSWERED = limit("unanswered")
OVERHEAD = 512  # bytes that an answer takes beside its body


@dataclass(slots=True)
class Answer:
    """What a future came to: the body of the response that tells it."""

    body: bytes
    content_type: str = "application/json"
    is_failure: bool = False


@dataclass(slots=True, eq=False)
class Future:
    """One request of the SDK that is answered later."""

    number: int  # of the request on the line to the broker
    digest: bytes  # of what was asked
    group: str = ""  # of samples: sampler and clone, whose completions are told together
    answer: Answer | None = None
    settled_at: float = 0.0
    fetched_at: float | None = None  # for the first time
    cursor: int = 0  # of its completion, in a group

    @property
    def num_bytes(self) -> int:
        """What its answer takes."""
        return 0 if self.answer is None else OVERHEAD + len(self.answer.body)


class Kept:
    """Answers that are kept, of all sessions together. Who keeps most gives up most."""

    def __init__(self, max_bytes: int = limit("total_result_bytes")) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self.holders: set[Futures] = set()  # those that keep any

    def make_room(self, newest: int) -> None:
        """Drop what is over the bound, but never the newest."""
        while self.num_bytes > self.max_bytes:
            fullest = max(self.holders, key=lambda futures: futures.num_bytes)
            if not fullest.drop_oldest(newest):
                return


class Futures:
    """The futures of one session, by number.

    Args:
        kept: shared by all sessions.
        max_bytes: of the answers of this one.
        cursor: completions count from here; more than any that a gateway before this one gave out.
    """

    def __init__(self, kept: Kept, max_bytes: int = limit("result_bytes"), cursor: int = 0) -> None:
        self._kept = kept
        self._max_bytes = max_bytes
        self._cursor = cursor
        self._futures: dict[int, Future] = {}
        self._settled: OrderedDict[int, None] = OrderedDict()  # those not fetched, oldest first
        self._fetched: OrderedDict[int, None] = OrderedDict()  # those fetched, oldest first
        self._expired: OrderedDict[int, Future] = OrderedDict()
        self._done: dict[str, dict[int, Future]] = {}  # by group and cursor, oldest first
        self._pending: dict[str, int] = {}  # futures without an answer, by group
        self.num_pending = 0
        self.num_bytes = 0  # of the answers

    def __len__(self) -> int:
        return len(self._futures)

    def open(self, number: int, digest: bytes, group: str = "") -> tuple[Future, bool]:
        """The future of a request, and whether it is new.

        Raises:
            Conflict: the number was used for something else.
            Busy: too many have no answer yet.
            WeftError: `result_expired`, it was answered too long ago.
        """
        known = self._futures.get(number)
        if known is None and number in self._expired:
            raise WeftError("the request was answered, and its result is gone", "result_expired")
        if known is None:
            if self.num_pending >= MAX_UNANSWERED:
                raise Busy(f"{self.num_pending} requests of the session wait for their answers")
            known = self._futures[number] = Future(number, digest, group)
            self._count(known, 1)
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
        known = self._futures.pop(number, None)
        if known is not None:
            self._count(known, -1)

    def settle(self, number: int, answer: Answer, now: float) -> None:
        """Keep an answer."""
        future = self._futures.get(number)
        if future is None or future.answer is not None:
            return
        self._count(future, -1)
        future.answer, future.settled_at = answer, now
        self._settled[number] = None
        self._hold(future.num_bytes)
        if future.group:
            self._cursor += 1
            future.cursor = self._cursor
            self._done.setdefault(future.group, {})[future.cursor] = future
        while self.num_bytes > self._max_bytes and self.drop_oldest(number):
            pass
        self._kept.make_room(number)

    def fetched(self, number: int, now: float) -> None:
        """An answer was sent."""
        future = self._futures.get(number)
        if future is not None and future.answer is not None and future.fetched_at is None:
            future.fetched_at = now
            self._settled.pop(number)
            self._fetched[number] = None

    def completions(self, group: str, cursor: int) -> tuple[list[Future], int]:
        """The futures of a group that completed after a cursor, and the cursor after them.

        Those up to the given cursor are told no more. One whose answer went before it was fetched
        is among them, for whoever waits for it.
        """
        for passed in [at for at in self._done.get(group, ()) if at <= cursor]:
            self._untell(self._done[group][passed])
        found = list(self._done.get(group, {}).values())
        return found, found[-1].cursor if found else cursor

    def is_awaited(self, group: str) -> bool:
        """Whether anything of a group has completed and was not told, or will complete."""
        return group in self._done or group in self._pending

    def acknowledge(self, numbers: Iterable[int]) -> None:
        """The SDK has these answers and will not ask for them again."""
        for number in numbers:
            future = self._futures.get(number)
            if future is not None and future.answer is not None:
                self._forget(future)
                self._untell(future)

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

    def drop_oldest(self, newest: int) -> bool:
        """Make room by the answer that was fetched, or else came, longest ago; whether one went.

        Args:
            newest: is kept.
        """
        for kept in (self._fetched, self._settled):
            number = next(iter(kept), newest)
            if number != newest:
                self._forget(self._futures[number])
                return True
        return False

    def close(self) -> None:
        """Drop everything: the session has ended."""
        for future in list(self._futures.values()):
            if future.answer is not None:
                self._forget(future)
            else:
                self.withdraw(future.number)

    def check_integrity(self) -> None:
        """Raise AssertionError when the books contradict each other."""
        waiting = [future for future in self._futures.values() if future.answer is None]
        answered = [future for future in self._futures.values() if future.answer is not None]
        assert self.num_pending == len(waiting)
        assert sum(self._pending.values()) == sum(future.group != "" for future in waiting)
        assert all(number > 0 for number in self._pending.values())
        assert self.num_bytes == sum(future.num_bytes for future in answered)
        assert self._kept.num_bytes == sum(held.num_bytes for held in self._kept.holders)
        numbers = [*self._settled, *self._fetched]
        assert sorted(numbers) == sorted(future.number for future in answered)
        assert all(self._futures[number].fetched_at is not None for number in self._fetched)
        assert not self._futures.keys() & self._expired.keys()
        assert len(self._expired) <= MAX_EXPIRED
        known = {*self._futures.values(), *self._expired.values()}
        for group, done in self._done.items():
            assert done
            assert list(done) == sorted(done)
            assert all(future.group == group for future in done.values())
            assert known.issuperset(done.values())

    def _count(self, future: Future, change: int) -> None:
        """Count a future that waits, or waits no more."""
        self.num_pending += change
        if future.group:
            left = self._pending.get(future.group, 0) + change
            self._pending[future.group] = left
            if not left:
                del self._pending[future.group]

    def _hold(self, num_bytes: int) -> None:
        """Count bytes that are kept, or kept no more."""
        self.num_bytes += num_bytes
        self._kept.num_bytes += num_bytes
        (self._kept.holders.add if self.num_bytes else self._kept.holders.discard)(self)

    def _forget(self, future: Future) -> None:
        del self._futures[future.number]
        self._fetched.pop(future.number, None)
        self._settled.pop(future.number, None)
        self._hold(-future.num_bytes)
        future.answer = None
        if future.fetched_at is not None:
            self._untell(future)
        self._expired[future.number] = future
        if len(self._expired) > MAX_EXPIRED:
            self._untell(self._expired.popitem(last=False)[1])

    def _untell(self, future: Future) -> None:
        """Take a completion off the list of its group."""
        done = self._done.get(future.group, {})
        if done.pop(future.cursor, None) is not None and not done:
            del self._done[future.group]
