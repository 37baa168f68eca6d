"""What several ask for at the same time is done once for all of them, and few things at a time."""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from functools import partial
from typing import Any, Generic, TypeVar

from ...client.errors import Busy

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

MAX_AT_A_TIME = 16
MAX_QUEUED = 256  # of which all but those wait for their turn


class Once(Generic[K, T]):
    """Tasks by key. One that is given up by whoever asked for it goes on for the others.

    Args:
        what: is under way, for the message of an error.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._tasks: dict[K, asyncio.Task[T]] = {}
        self._turns = asyncio.Semaphore(MAX_AT_A_TIME)

    async def do(self, key: K, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What is made under the key, by this caller or whoever asked before.

        Raises:
            Busy: too much is under way.
            Exception: of `make`, for everybody who waits.
        """
        task = self._tasks.get(key)
        if task is None:
            if len(self._tasks) >= MAX_QUEUED:
                raise Busy(f"{len(self._tasks)} {self._what}")
            task = self._tasks[key] = asyncio.create_task(self._run(make))
            task.add_done_callback(partial(self._ended, key))
        return await asyncio.shield(task)

    def close(self) -> None:
        """Cancel everything."""
        for task in self._tasks.values():
            task.cancel()

    async def _run(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        async with self._turns:
            return await make()

    def _ended(self, key: K, task: "asyncio.Task[T]") -> None:
        del self._tasks[key]
        if not task.cancelled():
            task.exception()  # whoever asked may be gone
