"""When the server is asked why requests wait: times in, questions out."""

from weft.client.asking import Asking
from weft.client.limits import LIMITS, limit

PERIOD_S = LIMITS["explain_s"].default


def test_nothing_is_asked_while_nobody_waits() -> None:
    asking = Asking()
    assert (asking.deadline(), asking.ask(1000.0)) == (None, [])


def test_the_first_question_comes_two_seconds_after_the_wait_began() -> None:
    asking = Asking()
    asking.began(7, since=10.0)
    assert asking.deadline() == 10.0 + PERIOD_S == 12.0
    assert asking.ask(11.9) == []
    assert asking.ask(12.0) == [7]


def test_a_question_is_repeated_every_two_seconds_once_the_last_is_answered() -> None:
    asking = Asking()
    asking.began(7, since=10.0)
    asking.ask(12.0)
    assert (asking.deadline(), asking.ask(20.0)) == (None, [])
    asking.answered()
    assert asking.deadline() == 14.0
    assert [asking.ask(now) for now in (13.9, 14.0)] == [[], [7]]


def test_one_question_is_for_all_that_have_waited_for_long_enough() -> None:
    asking = Asking()
    for number, since in ((3, 11.0), (1, 10.0), (2, 12.5)):
        asking.began(number, since)
    assert asking.ask(13.0) == [1, 3]


def test_a_request_is_asked_about_until_its_last_wait_is_over() -> None:
    asking = Asking()
    asking.began(7, since=10.0)
    asking.began(7, since=11.0)
    asking.ended(7, since=10.0)
    assert asking.deadline() == 13.0
    asking.ended(7, since=11.0)
    assert asking.deadline() is None
    asking.ended(7, since=11.0)
    assert asking.deadline() is None


def test_a_question_is_bounded_and_takes_the_longest_waits() -> None:
    asking = Asking()
    most = limit("explained_ids")
    for number in range(most + 5):
        asking.began(number, since=float(-number))
    assert asking.ask(100.0) == list(range(most + 4, 4, -1))
