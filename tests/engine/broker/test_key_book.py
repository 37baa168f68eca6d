"""Whose a key is: open servers, made keys, ended secrets, keys of the server's own process."""

import hashlib
from collections.abc import Callable

import pytest

from weft.client.errors import BadRequest
from weft.engine.broker.key_book import (
    Admission,
    Insiders,
    KeyBook,
    Secret,
    check_tenant,
    digest_of,
)

NOW = 1000.0
ALICE = Secret(digest_of("tml-a"), "k1", "alice")
ENDING = Secret(digest_of("tml-b"), "k1", "alice", ends=NOW + 5)


@pytest.mark.parametrize("api_key", ["", "tml-x", "anything"])
def test_without_keys_anybody_is_the_local_tenant(api_key: str) -> None:
    assert KeyBook().admit(api_key, NOW) == Admission("local")


def test_a_key_that_was_made_is_its_tenants() -> None:
    assert KeyBook([ALICE]).admit("tml-a", NOW) == Admission("alice", ALICE.digest)


@pytest.mark.parametrize("api_key", ["", "tml-x", "tml-A", "tml-a "])
def test_another_key_is_nobodys(api_key: str) -> None:
    assert KeyBook([ALICE]).admit(api_key, NOW) is None


def test_a_book_whose_last_key_was_revoked_lets_nobody_in() -> None:
    book = KeyBook([])
    assert book.admit("", NOW) is None
    assert book.admit("tml-a", NOW) is None


def test_a_digest_that_only_begins_alike_is_another() -> None:
    twin = Secret(ALICE.digest[:8] + bytes(24), "k2", "mallory")
    assert KeyBook([twin]).admit("tml-a", NOW) is None


def test_a_replaced_secret_counts_until_it_ends() -> None:
    book = KeyBook([ALICE, ENDING])
    admission = book.admit("tml-b", NOW)
    assert admission == Admission("alice", ENDING.digest)
    assert book.still_admits(admission, NOW + 4.9)
    assert not book.still_admits(admission, NOW + 5)
    assert book.admit("tml-b", NOW + 5) is None


def test_who_came_in_with_a_key_that_is_gone_may_not_stay() -> None:
    admission = Admission("alice", ALICE.digest)
    assert KeyBook([ALICE]).still_admits(admission, NOW)
    assert not KeyBook([ENDING]).still_admits(admission, NOW)
    assert not KeyBook([]).still_admits(admission, NOW)


def test_who_came_in_without_keys_may_not_stay_once_there_are_some() -> None:
    assert KeyBook().still_admits(Admission("local"), NOW)
    assert not KeyBook([ALICE]).still_admits(Admission("local"), NOW)


def test_keys_are_counted_once_each() -> None:
    book = KeyBook([ALICE, ENDING, Secret(digest_of("c"), "k2", "bob", ends=NOW)])
    assert book.count(NOW) == 1


def test_an_inside_key_is_the_tenant_asked_for_whatever_keys_there_are() -> None:
    insiders = Insiders(secret=b"s" * 32)
    for book in (KeyBook(None, insiders), KeyBook([ALICE], insiders), KeyBook([], insiders)):
        admission = book.admit(insiders.key("bob"), NOW)
        assert admission == Admission("bob", is_insider=True)
        assert book.still_admits(admission, NOW)


@pytest.mark.parametrize(
    "forge", [str.upper, lambda key: key.replace("bob", "eve"), lambda key: key[:-1]]
)
def test_a_forged_inside_key_is_nobodys(forge: Callable[[str], str]) -> None:
    insiders = Insiders(secret=b"s" * 32)
    assert KeyBook([], insiders).admit(forge(insiders.key("bob")), NOW) is None
    assert KeyBook([], insiders).admit(Insiders(secret=b"t" * 32).key("bob"), NOW) is None


def test_an_empty_secret_makes_no_inside_keys() -> None:
    assert KeyBook([], Insiders()).admit(Insiders().key("bob"), NOW) is None


def test_the_operator_is_known_by_its_key_alone() -> None:
    insiders = Insiders("sesame", b"s" * 32)
    book = KeyBook([ALICE], insiders)
    assert book.admit("sesame", NOW) == Admission("operator", is_insider=True)
    assert KeyBook([ALICE]).admit("", NOW) is None


@pytest.mark.parametrize("tenant", ["", "operator", "a b", "-a", "a" * 65, "a:b", "é"])
def test_an_id_that_no_tenant_can_have_is_refused(tenant: str) -> None:
    with pytest.raises(BadRequest, match="tenant"):
        check_tenant(tenant)


def test_a_key_is_kept_as_its_hash() -> None:
    assert digest_of("tml-a") == hashlib.sha256(b"tml-a").digest()
