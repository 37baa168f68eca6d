"""Work that several ask for: done once, by turns, for those who stay."""

import asyncio

import pytest

from weft.client.errors import Busy
from weft.engine.gateway import once
from weft.engine.gateway.once import Once


class Work:
    """Makes a name, when it is let."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.may_end = asyncio.Event()
        self.once: Once[str, str] = Once("names are being made")

    async def make(self, name: str) -> str:
        self.begun.append(name)
        await self.may_end.wait()
        if name == "bad":
            raise ValueError(name)
        return name

    def ask(self, name: str) -> "asyncio.Task[str]":
        return asyncio.create_task(self.once.do(name, lambda: self.make(name)))


async def settle() -> None:
    """Let every task do what it can."""
    for _ in range(10):
        await asyncio.sleep(0)


def test_all_who_ask_at_a_time_get_what_is_made_once() -> None:
    async def main() -> None:
        work = Work()
        asked = [work.ask("a") for _ in range(5)]
        await settle()
        work.may_end.set()
        assert await asyncio.gather(*asked) == ["a"] * 5
        assert work.begun == ["a"]
        assert await work.ask("a") == "a"
        assert work.begun == ["a", "a"]

    asyncio.run(main())


def test_who_leaves_takes_nothing_from_the_others() -> None:
    async def main() -> None:
        work = Work()
        first, second = work.ask("a"), work.ask("a")
        await settle()
        first.cancel()
        work.may_end.set()
        assert await second == "a"

    asyncio.run(main())


def test_a_failure_is_for_all_and_then_forgotten() -> None:
    async def main() -> None:
        work = Work()
        asked = [work.ask("bad") for _ in range(2)]
        work.may_end.set()
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(error) for error in found] == [ValueError, ValueError]
        with pytest.raises(ValueError, match="bad"):
            await work.ask("bad")
        assert len(work.begun) == 2

    asyncio.run(main())


def test_few_are_under_way_some_wait_and_the_rest_are_turned_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(once, "MAX_AT_A_TIME", 2)
    monkeypatch.setattr(once, "MAX_QUEUED", 3)

    async def main() -> None:
        work = Work()
        asked = [work.ask(name) for name in "abcd"]
        await settle()
        assert work.begun == ["a", "b"]
        with pytest.raises(Busy, match="3 names are being made"):
            await asked.pop()
        work.may_end.set()
        assert await asyncio.gather(*asked) == ["a", "b", "c"]

    asyncio.run(main())


def test_what_is_closed_is_cancelled() -> None:
    async def main() -> None:
        work = Work()
        asked = work.ask("a")
        await settle()
        work.once.close()
        with pytest.raises(asyncio.CancelledError):
            await asked

    asyncio.run(main())
