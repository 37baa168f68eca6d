"""Sessions: opened once, found again by whoever may, waited on, and ended."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from gateways import Caller, Stand

from weft.client.errors import Busy, NotFound, WeftError
from weft.client.limits import LIMITS, Limit
from weft.client.messages import SPOKEN_VERSIONS, Hello
from weft.engine.gateway import once
from weft.engine.gateway import session as session_module
from weft.engine.gateway.session import MAX_CLONE, Session

Build = Callable[..., Stand]
UNKNOWN = "0" * 32


def hello(session_id: str) -> Hello:
    return Hello(versions=list(SPOKEN_VERSIONS), session_id=session_id, api_key="tml-any")


def find(stand: Stand, session_id: str, key: str = "tml-any") -> Session:
    """The session as the gateway of a stand finds it."""

    async def search() -> Session:
        door = await stand.gateway.doors.admit(key)
        found: Session = await stand.gateway.sessions.find(door, session_id)
        return found

    return stand.loop.run(search())


def test_posts_of_one_session_at_the_same_time_open_one_line(stand: Stand, caller: Caller) -> None:
    caller.session()  # its key has a session of its own from now on

    async def race() -> list[Session]:
        door = await stand.gateway.doors.admit("tml-any")
        create = stand.gateway.sessions.create
        return list(await asyncio.gather(*[create(door, hello("a" * 32)) for _ in range(20)]))

    before = stand.broker_sessions()
    found = stand.loop.run(race())
    assert len(set(map(id, found))) == 1
    assert stand.broker_sessions() - before == {"a" * 32}


def test_a_session_that_was_lost_is_not_given_to_a_repeat_of_its_post(stand: Stand) -> None:
    async def create() -> Session:
        door = await stand.gateway.doors.admit("tml-any")
        made: Session = await stand.gateway.sessions.create(door, hello("b" * 32))
        return made

    first = stand.loop.run(create())
    stand.loop.call(first.line.close)
    second = stand.loop.run(create())
    assert second is not first
    assert not second.line.is_closed


def test_requests_that_meet_an_unknown_session_attach_it_once(build: Build) -> None:
    stand = build()
    session_id = stand.caller().session()
    stand.restart_gateway()

    async def race() -> list[Session]:
        door = await stand.gateway.doors.admit("tml-any")
        find = stand.gateway.sessions.find
        return list(await asyncio.gather(*[find(door, session_id) for _ in range(20)]))

    assert len(set(map(id, stand.loop.run(race())))) == 1


def test_a_run_goes_on_after_the_gateway_was_restarted(build: Build) -> None:
    stand = build()
    caller = stand.caller()
    run_id = caller.run()
    caller.result(caller.step(run_id, 1))
    stand.restart_gateway()
    assert caller.result(caller.step(run_id, 2)).json["metrics"]["step:max"] == 2


def test_samples_after_a_restart_are_told_to_who_polls_with_an_older_cursor(build: Build) -> None:
    stand = build()
    caller = stand.caller()
    sampler_id = caller.sampler()
    fields: dict[str, Any] = {"target": {"sampling_session_id": sampler_id}}
    caller.sample(sampler_id, 0)
    first = caller.post("retrieve_futures", fields).json
    stand.restart_gateway()
    request_id = caller.sample(sampler_id, 1).json["request_id"]
    told = caller.post("retrieve_futures", {**fields, "prev_cursor": first["cursor"]}).json
    assert [entry["request_id"] for entry in told["completions"]] == [request_id]


def test_who_waits_for_samples_that_went_with_a_gateway_is_told(build: Build) -> None:
    stand = build(hold=True)
    caller = stand.caller()
    stand.worker.hold = False
    sampler_id = caller.sampler()
    stand.worker.hold = True
    posted = caller.sample(sampler_id, 0)
    stand.restart_gateway()
    target = {"target": {"sampling_session_id": sampler_id}}
    assert caller.post("retrieve_futures", target).status == 410
    assert caller.poll(posted.json["request_id"]).status == 410
    assert caller.post("retrieve_futures", {**target, "timeout": 0}).status == 200


def test_a_poll_that_only_says_what_the_sdk_has_ends_at_once(build: Build) -> None:
    """The SDKs before 0.38 have no other way to say it; a failed poll would end their sampler."""
    caller = build().caller()
    sampler_id = caller.sampler()
    posted = caller.sample(sampler_id, 0)
    caller.result(posted)
    target = {"target": {"sampling_session_id": sampler_id}}
    fields = {**target, "retrieved_request_ids": [posted.json["request_id"]]}
    assert caller.post("retrieve_futures", fields).json["completions"] == []


def test_anothers_session_is_like_none(build: Build) -> None:
    stand = build(keyed=True)
    alice, bob = stand.caller(tenant="alice"), stand.caller(tenant="bob")
    session_id = alice.session()
    words = []
    for wanted in (session_id, UNKNOWN, "no id"):
        with pytest.raises(NotFound) as caught:
            find(stand, wanted, bob.key)
        words.append(str(caught.value).replace(wanted, ""))
    assert len(set(words)) == 1
    stand.restart_gateway()
    with pytest.raises(NotFound):
        find(stand, session_id, bob.key)
    assert find(stand, session_id, alice.key).tenant == stand.tenant("alice")


def test_a_session_outlives_its_key_for_another_key_of_the_tenant(build: Build) -> None:
    stand = build(keyed=True)
    first, second = stand.caller(tenant="alice"), stand.caller(tenant="alice")
    run_id = first.run()
    posted = first.step(run_id, 1)
    first.result(posted)
    session = find(stand, run_id.partition(":")[0], first.key)
    stand.revoke(first.key)
    while not session.line.is_closed:
        time.sleep(0.005)  # the broker looks at the keys now and then
    assert first.poll(posted.json["request_id"]).status == 401
    assert second.poll(posted.json["request_id"]).json["metrics"]["step:max"] == 1
    assert second.result(second.step(run_id, 2)).json["metrics"]["step:max"] == 2


def test_a_session_that_is_silent_for_long_ends(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller = stand.caller()
    session_id = caller.session()
    session = find(stand, session_id)
    monkeypatch.setitem(LIMITS, "session_ttl_s", Limit(10, "s", "", ""))
    stand.loop.call(stand.gateway.sessions.sweep, session.last_heard + 9)
    assert not session.line.is_closed
    stand.loop.call(stand.gateway.sessions.sweep, session.last_heard + 11)
    assert session.line.is_closed
    assert caller.post("session_heartbeat", {"session_id": session_id}).status == 410


def test_a_session_ends_however_long_the_reason(stand: Stand, caller: Caller) -> None:
    session_id = caller.session()
    line = find(stand, session_id).line
    fields = {"reason": {"type": "errored"}, "detail": "x" * 100_000}
    assert caller.post(f"sessions/{session_id}/finish", fields).status == 200
    assert line._socket is None
    assert caller.post("session_heartbeat", {"session_id": session_id}).status == 410


def test_a_flood_of_unknown_sessions_is_turned_away(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(once, "MAX_QUEUED", 30)

    async def flood() -> list[type]:
        door = await stand.gateway.doors.admit("tml-any")
        find = stand.gateway.sessions.find
        asked = [find(door, f"{number:032x}") for number in range(50)]
        return [type(error) for error in await asyncio.gather(*asked, return_exceptions=True)]

    found = stand.loop.run(flood())
    assert (found.count(NotFound), found.count(Busy)) == (30, 20)


def test_clones_of_a_session_get_numbers_of_their_own(stand: Stand, caller: Caller) -> None:
    session = find(stand, caller.session())
    numbers = [session.new_clone() for _ in range(1000)]
    assert len(set(numbers)) == 1000
    assert 1 <= min(numbers) <= max(numbers) <= MAX_CLONE


def test_waiting_for_what_never_comes_leaves_nothing_behind(stand: Stand, caller: Caller) -> None:
    session = find(stand, caller.session())
    for clone in range(20):
        with pytest.raises(WeftError, match="nothing is under way"):
            stand.loop.run(session.wait_group(f"sampler/{clone}", 0.01))
    assert not session._bells


def test_polls_are_let_go_when_the_gateway_stops(build: Build) -> None:
    stand = build(hold=True, poll_s=30.0)
    caller = stand.caller()
    stand.worker.hold = False
    run_id = caller.run()
    stand.worker.hold = True
    number = int(caller.step(run_id, 1).json["request_id"].rpartition(":")[2])
    session = find(stand, run_id.partition(":")[0])

    async def wait() -> tuple[bool, float]:
        waits = asyncio.create_task(session.wait(number, 30.0))
        while not session._bells:
            await asyncio.sleep(0)
        began = time.monotonic()
        stand.gateway.sessions.wake()
        return (await waits).answer is None, time.monotonic() - began

    is_pending, took_s = stand.loop.run(wait())
    assert is_pending
    assert took_s < 5


def test_a_session_of_many_samplers_remembers_the_latest(
    stand: Stand, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "_MAX_CARDS", 2)
    session_id = caller.session()
    samplers = [caller.sampler(session_id, number) for number in range(4)]
    for sampler_id in [*samplers, samplers[0]]:
        assert caller.result(caller.sample(sampler_id, samplers.index(sampler_id))).status == 200
    assert list(find(stand, session_id)._cards) == [samplers[3], samplers[0]]
