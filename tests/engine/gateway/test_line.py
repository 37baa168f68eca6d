"""A line: requests and answers over a real socket, reconnects, and both of its ends."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from fake_broker import CARD, FakeBroker, failure, reply, silent

from weft.client.arrays import pack_arrays
from weft.client.errors import BadRequest, Disconnected, Unauthorized, WeftError
from weft.client.limits import LIMITS, Limit
from weft.client.messages import Cancel, ForwardBackward, Hello, OptimStep, Query, Request
from weft.engine.gateway import line as line_module
from weft.engine.gateway.line import Line

Use = Callable[[Line], Awaitable[None]]
RUN = "a" * 32 + ":train:0"
SDK_NUMBER = 1 << 61


@pytest.fixture
def context() -> Iterator["zmq.Context[Any]"]:
    made: zmq.Context[Any] = zmq.Context()
    yield made
    made.term()


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/front"


@pytest.fixture
def broker(context: "zmq.Context[Any]", address: str) -> Iterator[FakeBroker]:
    made = FakeBroker(context, address)
    yield made
    made.close()


@pytest.fixture
def use(context: "zmq.Context[Any]", address: str) -> Callable[..., None]:
    """Run something with a line, which is dropped afterwards."""

    def begin(what: Use, **settings: Any) -> None:
        async def main() -> None:
            line = Line(context, address, hello(), **settings)
            try:
                async with asyncio.timeout(20):
                    await what(line)
            finally:
                line.drop()

        asyncio.run(main())

    return begin


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heartbeats come often: what went into a connection that was ending is soon noticed."""
    monkeypatch.setitem(LIMITS, "heartbeat_s", Limit(0.1, "s", "", ""))


def hello() -> Hello:
    return Hello(versions=[1], session_id="a" * 32)


def step(request_id: int, seq: int = 1) -> OptimStep:
    fields = dict.fromkeys(
        ("learning_rate", "beta1", "beta2", "eps", "weight_decay", "grad_clip_norm"), 0.5
    )
    return OptimStep(request_id=request_id, run_id=RUN, seq=seq, digest=b"", **fields)


def query(line: Line, what: str = "capabilities") -> Query:
    return Query(request_id=line.new_number(), what=what)


async def code_of(answer: "asyncio.Future[Any]") -> str:
    with pytest.raises(WeftError) as caught:
        await answer
    return caught.value.code


async def seen(broker: FakeBroker, kind: str, number: int = 1) -> list[Any]:
    return await asyncio.to_thread(broker.wait_for, kind, number)


def test_a_request_gets_the_plain_data_of_its_answer(
    broker: FakeBroker, use: Callable[..., None]
) -> None:
    async def ask(line: Line) -> None:
        assert line.welcome is None
        found = await line.request(query(line))
        assert [card["name"] for card in found["models"]] == [CARD.name]
        assert line.welcome is not None

    use(ask)


def test_arrays_go_and_come_back(broker: FakeBroker, use: Callable[..., None]) -> None:
    async def ask(line: Line) -> None:
        described, frames = pack_arrays({"target_tokens": np.array([1, 2], np.int32)})
        header = ForwardBackward(
            request_id=SDK_NUMBER,
            run_id=RUN,
            seq=1,
            digest=b"",
            part=0,
            num_parts=1,
            num_datums=1,
            num_tokens=2,
            loss_fn="cross_entropy",
            loss_fn_config={},
            forward_only=False,
            arrays=described,
        )
        (part,) = await line.send([header], [frames])
        assert part.reply.result["metrics"]["loss:sum"] == pytest.approx(0.03)
        assert (await seen(broker, "forward_backward"))[0].digest

    use(ask)


def test_a_failure_keeps_its_code(broker: FakeBroker, use: Callable[..., None]) -> None:
    async def ask(line: Line) -> None:
        with pytest.raises(BadRequest, match="no secrets"):
            await line.request(query(line, "secrets"))

    use(ask)


@pytest.mark.usefixtures("impatient")
def test_what_was_not_answered_is_sent_again_to_a_broker_that_does_not_know_it(
    context: "zmq.Context[Any]", address: str, use: Callable[..., None]
) -> None:
    first = FakeBroker(context, address)
    first.answers["optim_step"] = silent

    async def ask(line: Line) -> None:
        waits = line.send([step(SDK_NUMBER)], [()])
        await seen(first, "optim_step")
        await asyncio.to_thread(first.close)
        second = FakeBroker(context, address)
        try:
            await line.request(query(line))  # "who is that?" it is asked, and says hello again
            assert (await waits)[0].reply.result["metrics"]
            again = await seen(second, "optim_step")
            assert [header.request_id for header in again] == [SDK_NUMBER]
        finally:
            await asyncio.to_thread(second.close)

    use(ask)


@pytest.mark.usefixtures("impatient")
def test_what_the_broker_knows_is_not_sent_again(
    context: "zmq.Context[Any]", address: str, use: Callable[..., None]
) -> None:
    first = FakeBroker(context, address)
    first.answers["optim_step"] = silent

    async def ask(line: Line) -> None:
        waits = line.send([step(SDK_NUMBER)], [()])
        await seen(first, "optim_step")
        await asyncio.to_thread(first.close)
        second = FakeBroker(context, address)
        second.known = {SDK_NUMBER}
        try:
            await line.request(query(line))
            second.push(reply(step(SDK_NUMBER), {"metrics": {}}))
            await waits
            assert not [header for header in second.seen if header.kind == "optim_step"]
        finally:
            await asyncio.to_thread(second.close)

    use(ask)


def test_a_command_that_is_withdrawn_before_the_broker_took_it_uses_its_number_up(
    broker: FakeBroker, use: Callable[..., None]
) -> None:
    broker.answers["optim_step"] = lambda header, _: [failure(header, "busy", "full", 60.0)]

    async def ask(line: Line) -> None:
        waits = line.send([step(SDK_NUMBER, seq=7)], [()])
        await seen(broker, "optim_step")
        await line.request(query(line))  # the refusal has come before this answer
        await line.request(Cancel(request_id=line.new_number(), target_id=SDK_NUMBER))
        assert await code_of(waits) == "cancelled"
        (void,) = await seen(broker, "void")
        assert (void.run_id, void.first_seq, void.last_seq) == (RUN, 7, 7)

    use(ask)


@pytest.mark.parametrize("says_goodbye", [True, False])
def test_both_ends_fail_what_waits_and_only_closing_ends_the_session(
    broker: FakeBroker, use: Callable[..., None], says_goodbye: bool
) -> None:
    broker.answers["optim_step"] = silent

    async def ask(line: Line) -> None:
        waits = line.send([step(SDK_NUMBER)], [()])
        await seen(broker, "optim_step")
        (line.close if says_goodbye else line.drop)()
        assert await code_of(waits) == "disconnected"
        assert line.is_closed

    use(ask)
    if says_goodbye:
        broker.wait_for("goodbye")
    assert ("goodbye" in [header.kind for header in broker.seen]) == says_goodbye


@pytest.mark.parametrize("end", [Line.close, Line.drop])
def test_a_line_that_has_ended_takes_nothing(
    broker: FakeBroker, use: Callable[..., None], end: Callable[[Line], None]
) -> None:
    async def ask(line: Line) -> None:
        await line.request(query(line))
        end(line)
        with pytest.raises(Disconnected):
            await line.request(query(line))

    use(ask)


def test_a_wrong_key_ends_the_line_and_what_waits(
    broker: FakeBroker, use: Callable[..., None]
) -> None:
    refused = Request(request_id=0)
    broker.answers["hello"] = lambda header, _: [failure(refused, "unauthorized", "wrong")]
    lost = []

    async def ask(line: Line) -> None:
        with pytest.raises(Unauthorized):
            await line.request(query(line))
        assert line.is_closed

    use(ask, on_lost=lambda line, error: lost.append(error.code))
    assert lost == ["unauthorized"]


def test_who_asks_a_broker_that_is_away_is_told_soon(
    use: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_module, "_PATIENCE_S", 0.02)

    async def ask(line: Line) -> None:
        for _ in range(2):
            with pytest.raises(Disconnected, match="not answered for"):
                await line.request(query(line))
        assert not line.is_closed

    use(ask)


def test_bytes_are_counted_until_there_is_an_answer(
    broker: FakeBroker, use: Callable[..., None]
) -> None:
    broker.answers["optim_step"] = silent
    changes: list[int] = []

    async def ask(line: Line) -> None:
        waits = line.send([step(SDK_NUMBER)], [()])
        await seen(broker, "optim_step")
        assert sum(changes) > 50
        assert len(line) == 1
        broker.push(reply(step(SDK_NUMBER), {"metrics": {}}))
        await waits
        assert sum(changes) == 0
        assert len(line) == 0

    use(ask, on_bytes=changes.append)


def test_two_lines_of_one_session_do_not_ask_under_the_same_numbers(
    use: Callable[..., None],
) -> None:
    numbers: list[int] = []

    async def ask(line: Line) -> None:
        numbers.extend(line.new_number() for _ in range(100))

    use(ask)
    use(ask)
    assert len(set(numbers)) == 200
    assert 0 < min(numbers) <= max(numbers) < SDK_NUMBER


def test_a_message_that_cannot_be_read_is_dropped(
    broker: FakeBroker, use: Callable[..., None]
) -> None:
    async def ask(line: Line) -> None:
        await line.request(query(line))
        broker._bell.send_multipart([b"garbage"])
        assert await line.request(query(line))

    use(ask)


def test_somebody_who_waits_learns_why(
    broker: FakeBroker, use: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LIMITS, "explain_s", Limit(0.01, "s", "", ""))
    told = {"code": "queued", "detail": "behind 3 others"}
    broker.answers["optim_step"] = silent
    broker.answers["explain"] = lambda header, _: [reply(header, {"reasons": [told]})]

    async def ask(line: Line) -> None:
        waits = line.send([step(SDK_NUMBER)], [()])
        line.wait_began(SDK_NUMBER, 0.0)
        await seen(broker, "explain", 2)
        reason = line.reason(SDK_NUMBER)
        assert reason is not None
        assert (reason.code, reason.detail) == ("queued", "behind 3 others")
        line.wait_ended(SDK_NUMBER, 0.0)
        assert not waits.done()

    use(ask)


def test_more_than_the_socket_takes_at_once_is_all_sent(
    broker: FakeBroker, use: Callable[..., None]
) -> None:
    broker.answers["optim_step"] = silent

    async def ask(line: Line) -> None:
        for seq in range(3000):
            line.send([step(SDK_NUMBER + seq, seq)], [()])
        found = await seen(broker, "optim_step", 3000)
        assert [header.seq for header in found] == list(range(3000))

    use(ask)
