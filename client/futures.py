"""A result that is on its way, for threads and for coroutines alike."""

import asyncio
from collections.abc import Callable, Coroutine, Generator
from concurrent import futures
from functools import wraps
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from .errors import Timeout

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
S = TypeVar("S")
P = ParamSpec("P")


class APIFuture(Generic[T_co]):
    """The result of a call, to be waited for with `result()` or `await`.

    A timeout ends the wait, not the work; the result can be asked for again. Everything here may be
    called from any thread, any number of times.
    """

    def __init__(
        self, source: "futures.Future[T_co]", describe: Callable[[], str] = lambda: ""
    ) -> None:
        self._source = source
        self._describe = describe

    def result(self, timeout: float | None = None) -> T_co:
        """Wait for the result.

        Args:
            timeout: seconds, None for no bound.

        Raises:
            Timeout: it is not there yet; the message says what it waits for.
            WeftError: the call failed.
        """
        try:
            return self._source.result(timeout)
        except futures.TimeoutError:
            if self._source.done():
                raise  # the call's own failure
            raise self._late(timeout) from None

    async def result_async(self, timeout: float | None = None) -> T_co:
        """Wait for the result in a coroutine; as `result`."""
        # Shielded: a cancelled waiter leaves the work and the other waiters alone.
        waiter = asyncio.shield(asyncio.wrap_future(self._source))
        if timeout is None:
            return await waiter
        done, _ = await asyncio.wait([waiter], timeout=timeout)
        if not done:
            waiter.cancel()
            raise self._late(timeout)
        return waiter.result()

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
        return APIFuture(target, self._describe)

    def done(self) -> bool:
        """Whether the result or the failure is there."""
        return self._source.done()

    @property
    def waiting_for(self) -> str:
        """What it waits for, in words; "" when it is done."""
        return "" if self._source.done() else self._describe()

    def _late(self, timeout: float | None) -> Timeout:
        reason = self.waiting_for
        return Timeout(f"no result within {timeout:g} s" + (f": {reason}" if reason else ""))


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
        return await asyncio.to_thread(method, self, *args, **kwargs)

    return call
