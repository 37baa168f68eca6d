"""A result that is on its way, for threads and for coroutines alike."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Generator
from concurrent import futures
from functools import wraps
from math import inf
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar

from .errors import Timeout, WeftError, from_code
from .limits import LIMITS
from .waiting import Reason
from .waiting_line import REFRESH_S, on_behalf_of_this_thread

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
S = TypeVar("S")
P = ParamSpec("P")


class Watch(Protocol):
    """What the connection does while somebody waits: it asks the server why, and shows it."""

    def begin(self, since: float, describe: Callable[[], str]) -> Callable[[], None]:
        """Somebody has waited since then (monotonic seconds); returns what ends it."""
        ...

    def refresh(self) -> None:
        """They still wait; to be called every so often."""
        ...

    def explain(self, timeout: float) -> Reason | None:
        """Ask the server now why it waits; None when that is not known there."""
        ...

    def cancel(self) -> "futures.Future[None]":
        """Ask the server to withdraw it; fails when that is too late, or cannot be."""
        ...


class Unwatched:
    """A `Watch` for a future that no connection keeps."""

    def begin(self, since: float, describe: Callable[[], str]) -> Callable[[], None]:
        return self.refresh

    def refresh(self) -> None:
        return None

    def explain(self, timeout: float) -> Reason | None:
        return None

    def cancel(self) -> "futures.Future[None]":
        raise from_code("too_late", "it is no request of its own")


class APIFuture(Generic[T_co]):
    """The result of a call, to be waited for with `result()` or `await`.

    A timeout ends the wait, not the work; the result can be asked for again. Everything here may be
    called from any thread, any number of times.
    """

    def __init__(
        self,
        source: "futures.Future[T_co]",
        describe: Callable[[], str] = lambda: "",
        watch: Watch | None = None,
    ) -> None:
        self._source = source
        self._describe = describe
        self._watch = watch or Unwatched()

    def result(self, timeout: float | None = None) -> T_co:
        """Wait for the result.

        Args:
            timeout: seconds, None for no bound.

        Raises:
            Timeout: it is not there yet; the message says what it waits for.
            WeftError: the call failed.
        """
        try:
            return self._wait(timeout)
        except futures.TimeoutError:
            if self._source.done():
                return self._source.result()  # it came, or this is the call's own failure
            raise self._late(timeout) from None

    async def result_async(self, timeout: float | None = None) -> T_co:
        """Wait for the result in a coroutine; as `result`."""
        # Shielded: a cancelled waiter leaves the work and the other waiters alone.
        waiter = asyncio.shield(asyncio.wrap_future(self._source))
        wait = _CoroutineWait(self._watch, self._describe)
        try:
            if timeout is None:
                return await waiter
            done, _ = await asyncio.wait([waiter], timeout=timeout)
            if not done:
                waiter.cancel()
                raise self._late(timeout)
            return waiter.result()
        finally:
            wait.end()

    def __await__(self) -> Generator[Any, None, T_co]:
        return self.result_async().__await__()

    def future(self) -> "futures.Future[T_co]":
        """The `concurrent.futures` form, for `as_completed` and the like."""
        return self._source

    async def coroutine(self) -> T_co:
        """The coroutine form, for `asyncio.gather` and the like."""
        return await self.result_async()

    def map(self, fn: "Callable[[T_co], T]") -> "APIFuture[T]":
        """A future of what `fn` makes of the result; `fn` is short, and runs where that arrives."""
        target: futures.Future[T] = futures.Future()
        target.set_running_or_notify_cancel()

        def arrive(source: "futures.Future[T_co]") -> None:
            try:
                target.set_result(fn(source.result()))
            except BaseException as error:
                target.set_exception(error)

        self._source.add_done_callback(arrive)
        return self.derived(target)

    def derived(
        self, target: "futures.Future[T]", describe: Callable[[], str] | None = None
    ) -> "APIFuture[T]":
        """A future that waits for what this one waits for, and then for something of its own."""
        return APIFuture(target, describe or self._describe, self._watch)

    def done(self) -> bool:
        """Whether the result or the failure is there."""
        return self._source.done()

    def cancel(self, timeout: float | None = None) -> bool:
        """Withdraw the call if no worker has begun with it; waits for the server's word.

        The result is then the error `cancelled`, and nothing of the call is in effect. Calls made
        later on the same run are not held up.

        Returns:
            Whether it is withdrawn; False when it has started or is done.

        Raises:
            Timeout: the server has not answered in time; it may be withdrawn yet.
            BadRequest: a fork has copied the client into this process.
        """
        until = None if timeout is None else time.monotonic() + timeout
        if not self._source.done():
            try:
                self._watch.cancel().result(timeout)
            except futures.TimeoutError:
                raise Timeout(f"not known within {timeout:g} s whether it is withdrawn") from None
            except WeftError as error:
                if error.code == "bad_request":  # this process cannot ask
                    raise
                return self._is_cancelled()
            futures.wait([self._source], None if until is None else until - time.monotonic())
            return True
        return self._is_cancelled()

    async def cancel_async(self, timeout: float | None = None) -> bool:
        """The same in a coroutine."""
        return await asyncio.to_thread(self.cancel, timeout)

    def _is_cancelled(self) -> bool:
        if self._source.cancelled():
            return True
        error = self._source.exception() if self._source.done() else None
        return isinstance(error, WeftError) and error.code == "cancelled"

    @property
    def waiting_for(self) -> str:
        """What it waits for, in words; "" when it is done.

        It is what this program knows at once. The server is asked while somebody waits for the
        result, or by `explain`.
        """
        return "" if self._source.done() else self._describe()

    def explain(self, timeout: float = 10.0) -> Reason | None:
        """Why it waits, asked of the server now; None when it is done.

        Raises:
            Timeout: the server has not answered within so many seconds.
        """
        if self._source.done():
            return None
        reason = self._watch.explain(timeout)
        if self._source.done():
            return None
        return reason or Reason(code="computing", detail=self._describe())

    def _wait(self, timeout: float | None) -> T_co:
        """Wait; what lasts is watched."""
        wait = _Wait(self._watch, self._describe)
        patience = LIMITS["explain_s"].default
        try:
            while True:
                left = inf if timeout is None else timeout - wait.elapsed()
                try:
                    return self._source.result(min(patience, left))
                except futures.TimeoutError:
                    if self._source.done() or left <= patience:
                        raise
                wait.turn()
                patience = REFRESH_S
        finally:
            wait.end()

    def _late(self, timeout: float | None) -> Timeout:
        reason = self.waiting_for
        return Timeout(f"no result within {timeout:g} s" + (f": {reason}" if reason else ""))


class _Wait:
    """One wait, which is watched from its first turn on."""

    def __init__(self, watch: Watch, describe: Callable[[], str]) -> None:
        self._watch = watch
        self._describe = describe
        self._since = time.monotonic()
        self._end: Callable[[], None] | None = None

    def elapsed(self) -> float:
        return time.monotonic() - self._since

    def turn(self) -> None:
        if self._end is None:
            self._end = self._watch.begin(self._since, self._describe)
        self._watch.refresh()

    def end(self) -> None:
        if self._end is not None:
            self._end()


class _CoroutineWait:
    """The same with turns given by the event loop."""

    def __init__(self, watch: Watch, describe: Callable[[], str]) -> None:
        self._wait = _Wait(watch, describe)
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(LIMITS["explain_s"].default, self._turn)

    def end(self) -> None:
        self._timer.cancel()
        self._wait.end()

    def _turn(self) -> None:
        self._wait.turn()
        self._timer = self._loop.call_later(REFRESH_S, self._turn)


def as_coroutine(
    method: Callable[Concatenate[S, P], T],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    """The `_async` form of a method that returns at once: awaiting it gives what it returns."""

    @wraps(method)
    async def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return method(self, *args, **kwargs)

    return call


def awaited(
    method: Callable[Concatenate[S, P], APIFuture[T]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    """The `_async` form of a method that returns a future: awaiting it gives the result."""

    @wraps(method)
    async def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await method(self, *args, **kwargs)

    return call


def in_thread(
    method: Callable[Concatenate[S, P], T],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    """The `_async` form of a method that waits: it waits in a thread of its own."""

    @wraps(method)
    async def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with on_behalf_of_this_thread():
            return await asyncio.to_thread(method, self, *args, **kwargs)

    return call
