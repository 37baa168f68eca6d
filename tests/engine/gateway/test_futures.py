"""Futures: opened once, settled once, kept for those who ask again, and never without bound."""

import random

import pytest

from weft.client.errors import Busy, Conflict, WeftError
from weft.client.limits import LIMITS
from weft.engine.gateway import futures
from weft.engine.gateway.futures import OVERHEAD, Answer, Futures, Kept

FETCHED_S = LIMITS["fetched_ttl_s"].default
UNFETCHED_S = LIMITS["unfetched_ttl_s"].default


def settled(kept: Futures, *numbers: int, group: str = "", size: int = 0) -> None:
    """Open futures and answer them, at time 0."""
    for number in numbers:
        kept.open(number, b"", group)
        kept.settle(number, Answer(bytes(size)), 0.0)


def test_a_repeat_finds_the_same_future() -> None:
    kept = Futures(Kept())
    first, is_new = kept.open(1, b"digest")
    assert is_new
    assert kept.open(1, b"digest") == (first, False)


def test_other_content_under_the_same_number_is_a_conflict_and_changes_nothing() -> None:
    kept = Futures(Kept())
    first, _ = kept.open(1, b"digest")
    with pytest.raises(Conflict, match="same number"):
        kept.open(1, b"other")
    assert kept.find(1) is first


def test_the_first_answer_counts() -> None:
    kept = Futures(Kept())
    kept.open(1, b"")
    kept.settle(1, Answer(b"first"), 0.0)
    kept.settle(1, Answer(b"second"), 1.0)
    assert kept.find(1).answer == Answer(b"first")


def test_an_answer_to_a_future_that_was_withdrawn_is_dropped() -> None:
    kept = Futures(Kept())
    kept.open(1, b"")
    kept.withdraw(1)
    kept.settle(1, Answer(b"late"), 0.0)
    assert (len(kept), kept.num_bytes, kept.num_pending) == (0, 0, 0)


@pytest.mark.parametrize(("is_fetched", "ttl_s"), [(True, FETCHED_S), (False, UNFETCHED_S)])
def test_an_answer_is_kept_for_its_time_and_then_has_expired(
    is_fetched: bool, ttl_s: float
) -> None:
    kept = Futures(Kept())
    settled(kept, 1)
    if is_fetched:
        kept.fetched(1, 0.0)
    kept.expire(ttl_s)
    assert kept.find(1).answer is not None
    kept.expire(ttl_s + 1)
    with pytest.raises(WeftError) as caught:
        kept.open(1, b"")
    assert caught.value.code == "result_expired"


def test_the_time_of_an_answer_begins_with_its_first_delivery() -> None:
    kept = Futures(Kept())
    settled(kept, 1)
    kept.fetched(1, 0.0)
    kept.fetched(1, FETCHED_S)
    kept.expire(FETCHED_S + 1)
    assert len(kept) == 0


def test_an_unknown_future_has_expired() -> None:
    with pytest.raises(WeftError) as caught:
        Futures(Kept()).find(1)
    assert caught.value.code == "result_expired"


def test_over_its_bytes_a_session_gives_up_what_was_fetched_and_then_the_oldest() -> None:
    kept = Futures(Kept(), max_bytes=3 * OVERHEAD)
    settled(kept, 1, 2, 3)
    kept.fetched(2, 0.0)
    settled(kept, 4, 5)
    assert [number for number in range(1, 6) if kept._futures.get(number)] == [3, 4, 5]


def test_the_newest_answer_is_kept_whatever_its_size() -> None:
    kept = Futures(Kept(), max_bytes=1)
    settled(kept, 1, 2, size=100)
    assert kept.find(2).answer is not None
    with pytest.raises(WeftError):
        kept.find(1)


def test_over_the_bytes_of_all_the_session_that_keeps_most_gives_up() -> None:
    everybody = Kept(max_bytes=4 * OVERHEAD)
    greedy, modest = Futures(everybody), Futures(everybody)
    settled(greedy, 1, 2, 3)
    settled(modest, 4, 5)
    assert (len(greedy), len(modest)) == (2, 2)


def test_too_many_without_an_answer_are_refused_until_one_has_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(futures, "MAX_UNANSWERED", 2)
    kept = Futures(Kept())
    kept.open(1, b"")
    kept.open(2, b"")
    with pytest.raises(Busy):
        kept.open(3, b"")
    assert kept.open(2, b"") == (kept.find(2), False)
    kept.settle(1, Answer(b""), 0.0)
    assert kept.open(3, b"")[1]


def test_completions_are_told_again_until_their_cursor_comes_back() -> None:
    kept = Futures(Kept())
    settled(kept, 1, group="a")
    settled(kept, 2, group="b")
    settled(kept, 3, group="a")
    found, cursor = kept.completions("a", 0)
    assert [future.number for future in found] == [1, 3]
    assert kept.completions("a", 0) == (found, cursor)
    assert kept.completions("a", found[0].cursor) == (found[1:], cursor)
    assert kept.completions("a", cursor) == ([], cursor)
    assert not kept.is_awaited("a")
    assert kept.is_awaited("b")


def test_cursors_go_on_from_where_they_are_told_to() -> None:
    kept = Futures(Kept(), cursor=1000)
    settled(kept, 1, group="a")
    found, cursor = kept.completions("a", 999)
    assert ([future.number for future in found], cursor) == ([1], 1001)


def test_an_answer_that_went_before_it_was_fetched_is_still_told() -> None:
    kept = Futures(Kept(), max_bytes=OVERHEAD)
    settled(kept, 1, 2, group="a")
    found, _ = kept.completions("a", 0)
    assert [(future.number, future.answer is None) for future in found] == [(1, True), (2, False)]


def test_who_never_asks_for_completions_leaves_none_behind() -> None:
    kept = Futures(Kept())
    settled(kept, 1, 2, group="a")
    kept.fetched(1, 0.0)
    kept.fetched(2, 0.0)
    kept.expire(FETCHED_S + 1)
    assert not kept.is_awaited("a")


def test_what_the_sdk_has_is_dropped_at_once() -> None:
    kept = Futures(Kept())
    settled(kept, 1, group="a")
    kept.open(2, b"", "a")
    kept.acknowledge([1, 2, 3])
    assert kept.completions("a", 0) == ([], 0)
    assert kept.find(2).answer is None
    assert kept.num_bytes == 0


def test_a_session_that_ends_keeps_nothing() -> None:
    everybody = Kept()
    kept = Futures(everybody)
    settled(kept, 1, size=10)
    kept.open(2, b"")
    kept.close()
    kept.settle(2, Answer(b"late"), 0.0)
    assert (len(kept), kept.num_bytes, kept.num_pending, everybody.num_bytes) == (0, 0, 0, 0)
    assert everybody.holders == set()


@pytest.mark.parametrize("seed", range(6))
def test_the_books_agree_after_any_events(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(futures, "MAX_UNANSWERED", 20)
    monkeypatch.setattr(futures, "MAX_EXPIRED", 30)
    rng = random.Random(seed)
    everybody = Kept(max_bytes=40 * OVERHEAD)
    sessions = [Futures(everybody, max_bytes=25 * OVERHEAD) for _ in range(3)]
    now = 0.0
    for _ in range(1500):
        now += rng.choice([0, 1, 30])
        kept, number = rng.choice(sessions), rng.randrange(80)
        try:
            match rng.randrange(9):
                case 0 | 1 | 2:
                    kept.open(number, bytes([rng.random() < 0.05]), rng.choice(["", "a", "b"]))
                case 3 | 4:
                    kept.settle(number, Answer(bytes(rng.randrange(2000))), now)
                case 5:
                    kept.fetched(number, now)
                case 6:
                    kept.completions("a", rng.randrange(kept._cursor + 1))
                case 7:
                    kept.acknowledge([number])
                case 8:
                    kept.expire(now)
        except WeftError:
            pass
        for each in sessions:
            each.check_integrity()
