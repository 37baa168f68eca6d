"""Addresses of files: they are somebody's, and end with his key."""

import time
from collections.abc import Callable

import pytest
from gateways import Stand

from weft.engine.gateway import downloads
from weft.engine.gateway.downloads import FileLinks

Build = Callable[..., Stand]


def test_an_address_ends_with_the_key_it_was_given_to(build: Build) -> None:
    stand = build(keyed=True)
    alice = stand.caller(tenant="alice")
    alice.session()
    door = stand.loop.run(stand.gateway.doors.admit(alice.key))
    path = f"weft://{'0' * 32}:train:0/weights/a"
    token, _ = stand.loop.call(stand.gateway.links.make, door, path)
    before = alice.call("GET", f"/files/{token}/a")
    assert "no checkpoint" in before.json["error"]
    stand.revoke(alice.key)
    while not door.line.is_closed:
        time.sleep(0.005)  # the broker looks at the keys now and then
    after = alice.call("GET", f"/files/{token}/a")
    assert (after.status, after.body) == (404, alice.call("GET", "/files/none/a").body)


def test_no_more_addresses_are_kept_than_allowed(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "_MAX_LINKS", 3)
    door = stand.loop.run(stand.gateway.doors.admit("tml-any"))
    links = FileLinks()
    tokens = [links.make(door, "weft://a")[0] for _ in range(5)]
    assert list(links._links) == tokens[2:]
    assert len(set(tokens)) == 5
    assert min(map(len, tokens)) >= 43  # 32 bytes of chance


def test_many_addresses_of_one_key_do_not_end_those_of_another(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "_MAX_LINKS", 3)
    alice, bob = (stand.loop.run(stand.gateway.doors.admit(key)) for key in ("tml-a", "tml-b"))
    links = FileLinks()
    of_alice, _ = links.make(alice, "weft://a")
    of_bob = [links.make(bob, "weft://b")[0] for _ in range(5)]
    assert list(links._links) == [of_alice, *of_bob[3:]]


def test_a_link_does_not_show_its_key(stand: Stand) -> None:
    door = stand.loop.run(stand.gateway.doors.admit("tml-any"))
    links = FileLinks()
    token, _ = links.make(door, "weft://a")
    assert "tml" not in repr(links.find(token))
