"""What a connection decides: events in, actions out."""

from dataclasses import replace

import pytest

from weft.client import wire
from weft.client.actions import (
    Action,
    Answer,
    AnswerPart,
    Ask,
    Connect,
    Fail,
    Greeted,
    Happened,
    Lost,
    Outgoing,
    Send,
)
from weft.client.errors import BadRequest, Busy, Disconnected, EngineFailed
from weft.client.limits import LIMITS
from weft.client.link import Link
from weft.client.messages import (
    Ack,
    Event,
    Failure,
    Goodbye,
    Header,
    Heartbeat,
    Hello,
    Known,
    Reply,
    Resume,
    Welcome,
)
from weft.client.waiting import Reason

HELLO = Hello(versions=[1], session_id="5" * 32)
WELCOME = Welcome(version=1, session_id="5" * 32, server="s", models=[], limits={})
HEARTBEAT_S = LIMITS["heartbeat_s"].default
LIVENESS_S = LIMITS["liveness_s"].default


def send(header: Header) -> Send:
    return Send((wire.encode(header),))


def request(number: int, parts: int = 1) -> Outgoing:
    return Outgoing(number, "optim_step", tuple((b"%d.%d" % (number, i),) for i in range(parts)))


def sent(number: int, parts: int = 1) -> list[Send]:
    return [Send(message) for message in request(number, parts).messages]


def make_link() -> Link:
    return Link(HELLO, "tcp://there", jitter=lambda: 0.0)


def ready_link(*numbers: int) -> Link:
    """A link that was welcomed at time 0 and has sent these requests."""
    link = make_link()
    for number in numbers or (1,):
        link.submit(request(number), 0.0)
    link.receive(WELCOME, [], 0.0)
    if not numbers:
        link.receive(Reply(request_id=1), [], 0.0)
        link.tick(0.0)
    return link


def kinds(actions: list[Action]) -> list[str]:
    return [
        wire.decode(action.message[0]).kind if isinstance(action, Send) else type(action).__name__
        for action in actions
    ]


def test_the_first_request_connects_and_is_sent_after_the_welcome() -> None:
    link = make_link()
    assert link.deadline() is None
    assert link.submit(request(1), 0.0) == [Connect(), send(HELLO)]
    assert link.submit(request(2), 0.0) == []
    assert link.receive(WELCOME, [], 0.5) == [Greeted(WELCOME), *sent(1), *sent(2)]
    assert link.submit(request(3), 1.0) == sent(3)


def test_parts_of_a_request_are_sent_in_order() -> None:
    assert ready_link().submit(request(2, parts=3), 0.0) == sent(2, parts=3)


def test_an_answer_is_complete_with_its_last_part() -> None:
    link = ready_link(1)
    second = Reply(request_id=1, part=1, num_parts=2)
    first = Reply(request_id=1, part=0, num_parts=2, result={"a": 1})
    assert link.receive(second, [b"y"], 0.0) == []
    assert link.receive(first, [b"x"], 0.0) == [
        Answer(1, (AnswerPart(first, (b"x",)), AnswerPart(second, (b"y",))))
    ]
    assert link.tick(0.0) == [send(Ack(request_ids=[1]))]


def test_acknowledgements_are_gathered() -> None:
    link = ready_link(1, 2, 3)
    for number in (2, 1):
        link.receive(Reply(request_id=number), [], 0.0)
    link.receive(Failure(request_id=3, code="not_found", detail="gone"), [], 0.0)
    assert link.tick(0.0) == [send(Ack(request_ids=[2, 1, 3]))]
    assert link.tick(0.0) == []


def test_an_answer_that_comes_twice_is_acknowledged_again() -> None:
    link = ready_link()
    assert link.receive(Reply(request_id=1), [], 0.0) == []
    assert link.tick(0.0) == [send(Ack(request_ids=[1]))]


@pytest.mark.parametrize(
    "reply",
    [
        Reply(request_id=1, part=2, num_parts=2),
        Reply(request_id=1, part=-1, num_parts=2),
        Reply(request_id=1, part=0, num_parts=10**9),
        Reply(request_id=1, part=0, num_parts=0),
    ],
)
def test_an_impossible_part_fails_the_request(reply: Reply) -> None:
    (action,) = ready_link(1).receive(reply, [], 0.0)
    assert isinstance(action, Fail)
    assert isinstance(action.error, EngineFailed)


def test_a_failure_has_the_type_of_its_code() -> None:
    (action,) = ready_link(1).receive(
        Failure(request_id=1, code="too_large", detail="too big"), [], 0.0
    )
    assert isinstance(action, Fail)
    assert (type(action.error), action.error.code, str(action.error)) == (
        BadRequest,
        "too_large",
        "too big",
    )


def test_busy_is_tried_again_and_says_so() -> None:
    link = ready_link(1)
    busy = Failure(request_id=1, code="busy", detail="lane is full", retry_after_s=0.25)
    assert link.receive(busy, [], 1.0) == []
    text = "optim_step: lane is full; it is sent again in 0.2 s, refused 1 time so far"
    assert link.describe(1, 1.05) == text
    assert link.deadline() == 1.25
    assert link.tick(1.2) == []
    assert link.tick(1.25) == sent(1)
    assert link.describe(1, 1.25).endswith("is not answered yet")


def test_the_pause_of_a_busy_request_doubles_up_to_a_limit() -> None:
    link = ready_link(1)
    busy = Failure(request_id=1, code="busy", detail="", retry_after_s=0.001)
    pauses = []
    for _ in range(12):
        link.receive(busy, [], 0.0)
        pauses.append(next(p.retry_at for p in link._busy.values()))
        link.tick(100.0)
        link.receive(WELCOME, [], 0.0)
        link.receive(Known(request_ids=[]), [], 0.0)
    longest = LIMITS["busy_pause_s"].default
    assert pauses == [min(0.1 * 2**number, longest) for number in range(12)]


@pytest.mark.parametrize("what", ["create_run", "create_sampler", "fork_run"])
def test_what_finds_no_room_is_not_tried_for_ever(what: str) -> None:
    link = make_link()
    link.submit(Outgoing(1, what, ((b"1",),)), 0.0)
    link.receive(WELCOME, [], 0.0)
    busy = Failure(request_id=1, code="busy", detail="no room", retry_after_s=0.25)
    for now in (1.0, LIMITS["room_s"].default + 0.9):
        assert link.receive(busy, [], now) == []
        assert link.tick(now + 10)[0] == Send((b"1",))
    (action,) = link.receive(busy, [], LIMITS["room_s"].default + 1)
    assert isinstance(action, Fail)
    assert isinstance(action.error, Busy)
    assert str(action.error) == "no room"


def test_a_call_that_no_queue_takes_is_given_up_unsent() -> None:
    link = ready_link(1)
    busy = Failure(request_id=1, code="busy", detail="lane is full", retry_after_s=0.25)
    patience = LIMITS["admission_s"].default
    for now in (1.0, patience + 0.9):
        assert link.receive(busy, [], now) == []
        link.tick(now + 60)
        link.receive(Heartbeat(), [], now)
    (action,) = link.receive(busy, [], patience + 1)
    assert isinstance(action, Fail)
    assert isinstance(action.error, Busy)
    assert action.is_unsent


def test_a_void_is_never_given_up() -> None:
    link = ready_link()
    link.submit(Outgoing(2, "void", ((b"2",),)), 0.0)
    busy = Failure(request_id=2, code="busy", detail="", retry_after_s=0.25)
    for now in (1.0, 1e6):
        assert link.receive(busy, [], now) == []
        link.tick(now + 60)
        link.receive(WELCOME, [], now + 60)
        link.receive(Known(request_ids=[]), [], now + 60)


def cancel(number: int, target: int) -> Outgoing:
    return Outgoing(number, "cancel", ((b"cancel %d" % target,),), cancels=target)


def told(actions: list[Action]) -> list[tuple[int, str, bool]]:
    """Request, code and whether unsent, of what failed."""
    return [(a.request_id, a.error.code, a.is_unsent) for a in actions if isinstance(a, Fail)]


def test_what_was_not_sent_is_withdrawn_without_asking() -> None:
    link = make_link()
    link.submit(request(1), 0.0)
    actions = link.submit(cancel(2, 1), 0.0)
    assert told(actions) == [(1, "cancelled", True)]
    assert actions[1:] == [Answer(2, ())]
    assert link.receive(WELCOME, [], 0.5) == [Greeted(WELCOME)]


def test_what_was_sent_is_withdrawn_by_the_broker() -> None:
    link = ready_link(1)
    assert link.submit(cancel(2, 1), 0.0) == [Send((b"cancel 1",))]
    failure = Failure(request_id=1, code="cancelled", detail="")
    assert told(link.receive(failure, [], 0.0)) == [(1, "cancelled", False)]
    assert link.receive(Reply(request_id=2), [], 0.0)


def test_what_is_answered_is_too_late_to_withdraw() -> None:
    assert told(ready_link().submit(cancel(2, 1), 0.0)) == [(2, "too_late", False)]


def test_a_request_that_was_refused_as_busy_is_not_sent_again_once_withdrawn() -> None:
    busy = Failure(request_id=1, code="busy", detail="full", retry_after_s=0.25)
    link = ready_link(1)
    link.receive(busy, [], 0.0)
    assert told(link.submit(cancel(2, 1), 0.1)) == [(1, "cancelled", True)]
    link = ready_link(1)
    link.submit(cancel(2, 1), 0.0)
    assert told(link.receive(busy, [], 0.1)) == [(1, "cancelled", True)]
    assert sent(1)[0] not in link.tick(60.0)


@pytest.mark.parametrize("is_known", [True, False])
def test_after_a_reconnect_a_withdrawn_request_is_not_sent_again(is_known: bool) -> None:
    link = ready_link(1)
    link.submit(cancel(2, 1), 0.0)
    link.tick(LIVENESS_S)
    link.receive(WELCOME, [], LIVENESS_S)
    actions = link.receive(Known(request_ids=[1] if is_known else []), [], LIVENESS_S)
    assert told(actions) == ([] if is_known else [(1, "cancelled", True)])
    assert [action for action in actions if isinstance(action, Send)] == [Send((b"cancel 1",))]


def test_busy_without_a_time_is_final() -> None:
    (action,) = ready_link(1).receive(Failure(request_id=1, code="busy", detail="full"), [], 0.0)
    assert isinstance(action, Fail)
    assert isinstance(action.error, Busy)


def test_a_silent_link_sends_heartbeats() -> None:
    link = ready_link()
    assert link.deadline() == HEARTBEAT_S
    assert link.tick(HEARTBEAT_S - 0.1) == []
    assert link.tick(HEARTBEAT_S) == [send(Heartbeat())]
    assert link.deadline() == 2 * HEARTBEAT_S


def test_a_silent_broker_is_connected_to_anew() -> None:
    link = ready_link(1)
    link.receive(Heartbeat(), [], 5.0)
    assert kinds(link.tick(5.0 + LIVENESS_S - 0.1)) == ["heartbeat"]
    assert link.tick(5.0 + LIVENESS_S) == [Connect(), send(HELLO)]


def test_after_a_reconnect_only_unknown_requests_are_sent_again() -> None:
    link = ready_link(1, 2, 3)
    link.tick(LIVENESS_S)
    link.submit(request(4), LIVENESS_S)
    assert link.receive(WELCOME, [], LIVENESS_S) == [
        Greeted(WELCOME),
        send(Resume(request_ids=[1, 2, 3])),
    ]
    link.receive(Reply(request_id=3), [], LIVENESS_S)
    assert link.receive(Known(request_ids=[2]), [], LIVENESS_S) == [*sent(1), *sent(4)]


def test_many_requests_are_asked_for_page_by_page() -> None:
    page = int(LIMITS["request_ids"].default)
    link = ready_link(*range(1, page + 3))
    link.tick(LIVENESS_S)
    assert link.receive(WELCOME, [], LIVENESS_S)[1:] == [
        send(Resume(request_ids=list(range(1, page + 1))))
    ]
    everything = Known(request_ids=list(range(1, page + 1)))
    assert link.receive(everything, [], LIVENESS_S) == [
        send(Resume(request_ids=[page + 1, page + 2]))
    ]
    assert link.receive(Known(request_ids=[page + 1]), [], LIVENESS_S) == sent(page + 2)


def test_a_broker_that_forgot_the_session_is_greeted_again() -> None:
    link = ready_link(1)
    forgotten = Failure(request_id=1, code="unknown_session", detail="")
    assert link.receive(forgotten, [], 1.0) == [Connect(), send(HELLO)]
    assert link.receive(forgotten, [], 1.0) == []
    link.receive(WELCOME, [], 1.0)
    assert link.receive(Known(request_ids=[]), [], 1.0) == sent(1)


def test_parts_of_an_interrupted_answer_are_not_mixed_with_the_next() -> None:
    link = ready_link(1)
    link.receive(Reply(request_id=1, part=0, num_parts=2), [b"old"], 0.0)
    link.tick(LIVENESS_S)
    link.receive(WELCOME, [], LIVENESS_S)
    link.receive(Known(request_ids=[]), [], LIVENESS_S)
    whole = Reply(request_id=1)
    assert link.receive(whole, [b"new"], LIVENESS_S) == [Answer(1, (AnswerPart(whole, (b"new",)),))]


def test_a_busy_request_is_not_asked_for_and_keeps_its_time() -> None:
    link = ready_link(1)
    link.receive(Failure(request_id=1, code="busy", detail="", retry_after_s=30.0), [], 0.0)
    link.tick(LIVENESS_S)
    assert link.receive(WELCOME, [], LIVENESS_S) == [Greeted(WELCOME)]
    assert link.tick(30.0)[0] == sent(1)[0]


def test_an_absent_server_fails_everything_and_may_come_later() -> None:
    link = make_link()
    link.submit(request(1), 0.0)
    attempts = [link.tick(now) for now in (0.9, 1.0, 3.0, 7.0)]
    assert attempts == [[], *[[Connect(), send(HELLO)]] * 3]
    failed, lost = link.tick(LIMITS["connect_s"].default)
    assert isinstance(failed, Fail)
    assert isinstance(failed.error, Disconnected)
    assert "tcp://there" in str(failed.error)
    assert "weft serve" in str(failed.error)
    assert isinstance(lost, Lost)
    assert link.submit(request(2), 9.0) == [Connect(), send(HELLO)]


def test_a_server_that_stays_away_is_given_up_for_good() -> None:
    link = ready_link(1)
    link.tick(LIVENESS_S)
    *_, failed, lost = link.tick(LIVENESS_S + LIMITS["reconnect_s"].default)
    assert isinstance(failed, Fail)
    assert isinstance(lost, Lost)
    assert link.submit(request(2), 9999.0) == [Fail(2, lost.error)]


@pytest.mark.parametrize("code", ["unauthorized", "unsupported_version", "session_expired"])
def test_a_refused_session_fails_everything(code: str) -> None:
    link = make_link()
    link.submit(request(1), 0.0)
    failed, _ = link.receive(Failure(request_id=0, code=code, detail="no"), [], 0.0)
    assert isinstance(failed, Fail)
    assert failed.error.code == code


def test_a_session_that_must_exist_and_has_gone_is_not_opened_anew() -> None:
    link = Link(replace(HELLO, must_exist=True), "tcp://there", jitter=lambda: 0.0)
    link.submit(request(1), 0.0)
    link.receive(WELCOME, [], 0.0)
    forgotten = link.receive(Failure(request_id=1, code="unknown_session", detail=""), [], 1.0)
    assert forgotten == [Connect(), send(link.hello)]
    gone = Failure(request_id=0, code="session_expired", detail="no session")
    failed, lost = link.receive(gone, [], 1.0)
    assert isinstance(failed, Fail)
    assert isinstance(lost, Lost)
    assert link.submit(request(2), 2.0) == [Fail(2, lost.error)]


def test_a_version_that_is_not_spoken_is_refused() -> None:
    link = make_link()
    link.submit(request(1), 0.0)
    failed, _ = link.receive(replace(WELCOME, version=9), [], 0.0)
    assert isinstance(failed, Fail)
    assert failed.error.code == "unsupported_version"


def test_a_full_server_says_why_it_takes_nobody() -> None:
    link = make_link()
    link.submit(request(1), 0.0)
    assert link.receive(Failure(request_id=0, code="busy", detail="1024 sessions"), [], 0.1) == []
    failed = link.tick(LIMITS["connect_s"].default)[0]
    assert isinstance(failed, Fail)
    assert "1024 sessions" in str(failed.error)


def test_closing_says_goodbye_and_fails_what_is_left() -> None:
    link = ready_link(1)
    goodbye, failed = link.close(1.0)
    assert goodbye == send(Goodbye())
    assert isinstance(failed, Fail)
    assert isinstance(failed.error, Disconnected)
    (after,) = link.submit(request(2), 2.0)
    assert isinstance(after, Fail)


def test_closing_what_never_opened_sends_nothing() -> None:
    assert make_link().close(0.0) == []


def test_events_are_passed_on() -> None:
    event = Event(name="step", fields={})
    assert ready_link().receive(event, [], 0.0) == [Happened(event)]


def test_a_waiting_request_says_for_what() -> None:
    link = make_link()
    link.submit(request(1), 0.0)
    before = link.describe(1, 3.0)
    link.receive(WELCOME, [], 3.0)
    text = "optim_step: tcp://there has not answered for 3 s; is a server running there?"
    assert before == text
    text = "optim_step: it was sent to tcp://there and is not answered yet"
    assert link.describe(1, 3.0) == text
    assert (link.describe(2, 3.0), link.reason(2, 3.0)) == ("", None)


def test_a_server_that_takes_no_session_is_quoted() -> None:
    link = make_link()
    link.submit(request(1), 0.0)
    refusal = Failure(request_id=0, code="stopping", detail="the server is shutting down")
    link.receive(refusal, [], 1.0)
    detail = "tcp://there has taken no session for 2 s: the server is shutting down"
    assert link.reason(1, 2.0) == Reason(code="connecting", detail=detail)


def test_a_lost_server_is_told_apart_from_one_that_was_never_there() -> None:
    link = ready_link(1)
    link.tick(LIVENESS_S)
    detail = "tcp://there was lost 5 s ago, and is tried again"
    assert link.reason(1, LIVENESS_S + 5) == Reason(code="reconnecting", detail=detail)
    link.receive(WELCOME, [], LIVENESS_S + 5)
    reason = link.reason(1, LIVENESS_S + 5)
    assert reason is not None
    assert (link.state, reason.code) == ("resume", "reconnecting")


def test_the_server_is_asked_why_and_its_reason_is_told_until_the_request_is_sent_again() -> None:
    link = ready_link(1)
    link.asking.began(1, since=0.0)
    assert link.deadline() == LIMITS["explain_s"].default
    assert link.tick(2.0) == [Ask((1,))]
    queued = Reason(code="queued", detail="2nd in your lane", place=2)
    link.explained({1: queued, 9: queued})
    assert link.describe(1, 2.0) == "optim_step: 2nd in your lane"
    link.explained({1: Reason(code="unknown", detail="")})
    assert link.reason(1, 2.0) == queued
    busy = Failure(request_id=1, code="busy", detail="full", retry_after_s=0.25)
    link.receive(busy, [], 2.0)
    link.tick(2.5)
    reason = link.reason(1, 2.5)
    assert reason is not None
    assert reason.code == "sent"


def test_a_server_that_cannot_be_reached_is_not_asked() -> None:
    link = make_link()
    link.submit(request(1), 0.0)
    link.asking.began(1, since=0.0)
    assert Ask((1,)) not in link.tick(2.0)
