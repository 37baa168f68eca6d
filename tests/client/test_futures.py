"""One future for threads and coroutines."""

import asyncio
from concurrent import futures

import pytest

from weft.client import APIFuture, BadRequest, Timeout


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
