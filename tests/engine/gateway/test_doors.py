"""Doors: each key is asked for once, wrong ones stay out, and no more are open than allowed."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from fake_broker import FakeBroker, failure, silent, welcome

from weft.client.errors import Busy, Unauthorized
from weft.client.limits import LIMITS
from weft.client.messages import Request
from weft.engine.gateway import doors as doors_module
from weft.engine.gateway import once
from weft.engine.gateway.doors import Doors

Use = Callable[[Doors], Coroutine[Any, Any, None]]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[FakeBroker]:
    """Lets in every key but those that say that they are wrong."""
    context: zmq.Context[Any] = zmq.Context()
    made = FakeBroker(context, f"ipc://{tmp_path}/front")

    def answer(header: Any, arrays: Any) -> list[Any]:
        if "wrong" in header.api_key:
            return [failure(Request(request_id=0), "unauthorized", "wrong")]
        return welcome(header, arrays)

    made.answers["hello"] = answer
    yield made
    made.close()
    context.term()


def use(broker: FakeBroker, what: Use) -> None:
    """Run something with doors to a broker."""
    context: zmq.Context[Any] = zmq.Context()

    async def main() -> None:
        doors = Doors(context, broker.address)
        try:
            async with asyncio.timeout(20):
                await what(doors)
        finally:
            doors.close()

    asyncio.run(main())
    context.term()


def hellos(broker: FakeBroker) -> list[str]:
    return [getattr(header, "api_key", "") for header in broker.seen if header.kind == "hello"]


def test_many_requests_for_a_new_key_ask_once(broker: FakeBroker) -> None:
    async def ask(doors: Doors) -> None:
        found = await asyncio.gather(*[doors.admit("a") for _ in range(50)])
        assert len(set(map(id, found))) == 1
        assert hellos(broker) == ["a"]

    use(broker, ask)


def test_a_wrong_key_is_refused_and_not_asked_for_again_at_once(broker: FakeBroker) -> None:
    async def ask(doors: Doors) -> None:
        for _ in range(3):
            with pytest.raises(Unauthorized, match="missing or wrong"):
                await doors.admit("wrong")
        assert hellos(broker) == ["wrong"]
        assert len(doors) == 0

    use(broker, ask)


@pytest.mark.parametrize("key", ["\udcff", "k" * 5000, "schlüssel"])
def test_what_can_be_no_key_is_refused_without_a_question(broker: FakeBroker, key: str) -> None:
    async def ask(doors: Doors) -> None:
        with pytest.raises(Unauthorized):
            await doors.admit(key)
        assert hellos(broker) == []

    use(broker, ask)


def test_a_key_that_ended_is_asked_for_anew(broker: FakeBroker) -> None:
    async def ask(doors: Doors) -> None:
        door = await doors.admit("a")
        broker.push(failure(Request(request_id=0), "unauthorized", "revoked"))
        while not door.line.is_closed:
            await asyncio.sleep(0.001)
        broker.answers["hello"] = lambda header, _: [
            failure(Request(request_id=0), "unauthorized", "revoked")
        ]
        with pytest.raises(Unauthorized):
            await doors.admit("a")
        assert len(doors) == 0

    use(broker, ask)


def test_over_the_limit_the_door_that_was_used_longest_ago_is_closed(
    broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doors_module, "_MAX_DOORS", 2)

    async def ask(doors: Doors) -> None:
        first, second = await doors.admit("a"), await doors.admit("b")
        assert await doors.admit("a") is first
        await doors.admit("c")
        assert (first.line.is_closed, second.line.is_closed, len(doors)) == (False, True, 2)

    use(broker, ask)


def test_a_door_in_use_stays_open(broker: FakeBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors_module, "_MAX_DOORS", 1)
    much_later = LIMITS["door_s"].default * 2

    async def ask(doors: Doors) -> None:
        first = await doors.admit("a")
        with first.used():
            await doors.admit("b")
            doors.sweep(first.last_used + much_later)
            assert not first.line.is_closed
        doors.sweep(first.last_used + much_later)
        assert first.line.is_closed
        assert len(doors) == 0

    use(broker, ask)


def test_somebody_who_gives_up_does_not_end_the_question_of_the_others(broker: FakeBroker) -> None:
    async def ask(doors: Doors) -> None:
        impatient = asyncio.create_task(doors.admit("a"))
        patient = asyncio.create_task(doors.admit("a"))
        await asyncio.sleep(0)
        impatient.cancel()
        assert (await patient).key == "a"

    use(broker, ask)


def test_a_flood_of_keys_is_asked_for_a_few_at_a_time_and_then_turned_away(
    broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(once, "MAX_QUEUED", 20)
    broker.answers["hello"] = silent

    async def ask(doors: Doors) -> None:
        flood = [asyncio.create_task(doors.admit(f"wrong {number}")) for number in range(20)]
        await asyncio.to_thread(broker.wait_for, "hello", 16)
        with pytest.raises(Busy, match="20 API keys"):
            await doors.admit("one more")
        assert len(hellos(broker)) == 16
        doors.close()
        assert all(
            isinstance(error, asyncio.CancelledError)
            for error in await asyncio.gather(*flood, return_exceptions=True)
        )

    use(broker, ask)


def test_a_key_is_in_no_words_about_its_door(broker: FakeBroker) -> None:
    async def ask(doors: Doors) -> None:
        assert "secret" not in repr(await doors.admit("secret"))

    use(broker, ask)
