"""One future for threads and coroutines."""

import asyncio
from collections.abc import Callable
from concurrent import futures

import pytest

from weft.client import APIFuture, BadRequest, Conflict, Timeout
from weft.client import futures as futures_module
from weft.client.limits import LIMITS, Limit
from weft.client.waiting import Reason


def make(describe: str = "") -> "tuple[futures.Future[int], APIFuture[int]]":
    source: futures.Future[int] = futures.Future()
    source.set_running_or_notify_cancel()
    return source, APIFuture(source, lambda: describe)


def test_a_result_is_given_any_number_of_times() -> None:
    source, future = make()
    source.set_result(7)
    assert [future.result(), future.result(0), future.future().result()] == [7, 7, 7]
    assert future.done()


def test_a_wait_that_ends_says_what_for_and_may_be_repeated() -> None:
    source, future = make("step is queued")
    with pytest.raises(Timeout, match=r"no result within 0.01 s: step is queued"):
        future.result(0.01)
    assert future.waiting_for == "step is queued"
    source.set_result(7)
    assert (future.result(0.01), future.waiting_for) == (7, "")


def test_a_failure_that_is_itself_a_timeout_is_passed_on() -> None:
    source, future = make()
    source.set_exception(TimeoutError("mine"))
    with pytest.raises(TimeoutError, match="mine"):
        future.result(1)


def test_coroutines_wait_in_every_form() -> None:
    source, future = make()

    async def wait() -> list[int]:
        asyncio.get_running_loop().call_soon(source.set_result, 7)
        return list(await asyncio.gather(future, future.coroutine(), future.result_async(), future))

    assert asyncio.run(wait()) == [7] * 4


def test_a_coroutine_that_gives_up_leaves_the_others_waiting() -> None:
    source, future = make("step is queued")

    async def wait() -> tuple[str, int]:
        cancelled = asyncio.ensure_future(future.coroutine())
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(Timeout) as late:
            await future.result_async(timeout=0.01)
        source.set_result(7)
        return str(late.value), await future

    assert asyncio.run(wait()) == ("no result within 0.01 s: step is queued", 7)


def test_a_failure_reaches_a_coroutine() -> None:
    source, future = make()
    source.set_exception(BadRequest("no"))

    async def wait() -> None:
        await future

    with pytest.raises(BadRequest, match="no"):
        asyncio.run(wait())


def test_a_mapped_future_has_the_mapped_result_or_failure() -> None:
    source, future = make()
    doubled, failed = (
        future.map(lambda value: 2 * value),
        future.map(lambda value: 1 // (value - 7)),
    )
    source.set_result(7)
    assert doubled.result(1) == 14
    with pytest.raises(ZeroDivisionError):
        failed.result(1)


class Recorder:
    """A watch that notes what it is told, and ends the wait at its second turn."""

    def __init__(self, source: "futures.Future[int]") -> None:
        self.source = source
        self.told: list[str] = []

    def begin(self, since: float, describe: Callable[[], str]) -> Callable[[], None]:
        self.told.append(f"begin {describe()}")
        return lambda: self.told.append("end")

    def refresh(self) -> None:
        self.told.append("refresh")
        if self.told.count("refresh") == 2:
            self.source.set_result(7)

    def explain(self, timeout: float) -> Reason | None:
        return None

    def cancel(self) -> "futures.Future[None]":
        answer: futures.Future[None] = futures.Future()
        self.told.append("cancel")
        if self.told.count("cancel") == 1:
            answer.set_exception(Conflict("it has started", "too_late"))
        elif self.told.count("cancel") == 2:
            answer.set_result(None)
            self.source.set_exception(Conflict("withdrawn", "cancelled"))
        return answer


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    monkeypatch.setitem(LIMITS, "explain_s", Limit(0.001, "s", "", ""))
    monkeypatch.setattr(futures_module, "REFRESH_S", 0.001)
    source, _ = make()
    return Recorder(source)


@pytest.mark.parametrize("form", ["result", "bounded result", "await", "mapped"])
def test_a_wait_that_lasts_is_watched_until_it_ends(recorder: Recorder, form: str) -> None:
    future = APIFuture(recorder.source, lambda: "step is queued", recorder)

    async def wait() -> int:
        return await future

    match form:
        case "result":
            assert future.result() == 7
        case "bounded result":
            assert future.result(60) == 7
        case "await":
            assert asyncio.run(wait()) == 7
        case _:
            assert future.map(lambda value: 2 * value).result() == 14
    assert recorder.told == ["begin step is queued", "refresh", "refresh", "end"]


def test_a_short_wait_and_a_finished_one_are_not_watched(recorder: Recorder) -> None:
    future = APIFuture(recorder.source, lambda: "step is queued", recorder)
    with pytest.raises(Timeout):
        future.result(0.0005)
    recorder.source.set_result(7)
    assert future.result() == 7
    assert recorder.told == []


def test_a_watched_wait_that_is_given_up_is_over(recorder: Recorder) -> None:
    future = APIFuture(recorder.source, watch=recorder)

    async def wait() -> None:
        waiter = asyncio.ensure_future(future.coroutine())
        while not recorder.told:
            await asyncio.sleep(0)
        waiter.cancel()
        await asyncio.wait([waiter])

    asyncio.run(wait())
    assert recorder.told[-1] == "end"


@pytest.mark.parametrize("is_mapped", [True, False])
def test_a_call_is_withdrawn_unless_it_has_started(recorder: Recorder, is_mapped: bool) -> None:
    future = APIFuture(recorder.source, watch=recorder)
    if is_mapped:
        future = future.map(lambda value: value + 1)
    assert not future.cancel()
    assert not future.done()
    assert asyncio.run(future.cancel_async())
    with pytest.raises(Conflict) as caught:
        future.result()
    assert caught.value.code == "cancelled"
    assert future.cancel()
    assert recorder.told == ["cancel"] * 2


def test_without_word_of_the_server_a_withdrawal_is_not_known(recorder: Recorder) -> None:
    recorder.told = ["cancel"] * 2
    with pytest.raises(Timeout, match="not known within"):
        APIFuture(recorder.source, watch=recorder).cancel(timeout=0.001)


def test_what_is_done_or_no_request_of_its_own_cannot_be_withdrawn() -> None:
    source, future = make()
    assert not future.cancel()
    source.set_result(7)
    assert not future.cancel()


def test_what_no_server_knows_is_explained_by_its_own_words(recorder: Recorder) -> None:
    future = APIFuture(recorder.source, lambda: "the loss is computed", recorder)
    assert future.explain() == Reason(code="computing", detail="the loss is computed")
    recorder.source.set_result(7)
    assert future.explain() is None
