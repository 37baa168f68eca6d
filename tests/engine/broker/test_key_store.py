"""The file of keys: what it holds, what the commands change in it, and when it is damaged."""

import sqlite3
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from weft.client.errors import BadRequest, NotFound
from weft.engine.broker import key_store
from weft.engine.broker.key_book import KeyBook
from weft.engine.broker.key_store import KeyStore


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path / "state")


def tenant_of(store: KeyStore, secret: str, now: float | None = None) -> str | None:
    """Whose a secret is, as a server would say."""
    admission = KeyBook(store.secrets()).admit(secret, time.time() if now is None else now)
    return None if admission is None else admission.tenant


def test_before_the_first_key_there_is_no_file(store: KeyStore) -> None:
    assert store.secrets() is None
    assert store.entries() == []
    assert not store.path.exists()


def test_a_key_belongs_to_its_tenant(store: KeyStore) -> None:
    key, secret = store.create("alice", "laptop")
    assert (key.tenant_name, key.name, key.revoked) == ("alice", "laptop", 0)
    assert tenant_of(store, secret) == key.tenant
    assert tenant_of(store, secret + "x") is None
    assert store.entries() == [key]


def test_a_key_has_the_form_that_clients_insist_on_and_256_random_bits(store: KeyStore) -> None:
    made = [store.create()[1] for _ in range(3)]
    assert len(set(made)) == 3
    for secret in made:
        assert secret.startswith("tml-")
        assert len(secret) == len("tml-") + 43  # 32 bytes in letters of 6 bits


def test_each_key_is_a_tenant_unless_one_is_named(store: KeyStore) -> None:
    assert store.create()[0].tenant != store.create()[0].tenant
    alice = store.create("alice")[0]
    assert store.create("alice")[0].tenant == alice.tenant
    assert store.create(alice.tenant)[0].tenant == alice.tenant


def test_what_was_made_before_there_were_keys_gets_a_key(store: KeyStore) -> None:
    assert store.create("local")[0].tenant == "local"


def test_the_operator_can_have_a_key(store: KeyStore) -> None:
    assert store.create("operator")[0].tenant == "operator"


@pytest.mark.parametrize("tenant", ["a\nb", "x" * 129])
def test_a_tenant_that_cannot_be_is_refused(store: KeyStore, tenant: str) -> None:
    with pytest.raises(BadRequest, match="tenant"):
        store.create(tenant)
    assert store.secrets() is None


def test_no_key_is_in_the_directory(store: KeyStore) -> None:
    key, first = store.create("alice", "laptop")
    second = store.rotate(key.key_id)[1]
    reader = sqlite3.connect(store.path)  # keeps the log of changes from being folded in
    third = store.rotate(key.key_id, 100)[1]
    content = b"".join(path.read_bytes() for path in store.path.parent.iterdir())
    reader.close()
    assert b"alice" in content
    for secret in (first, second, third):
        assert secret.encode() not in content
        assert secret[4:].encode() not in content


def test_only_the_owner_may_read_the_file(store: KeyStore) -> None:
    store.create()
    reader = sqlite3.connect(store.path)
    reader.execute("SELECT * FROM keys").fetchall()
    modes = {stat.S_IMODE(path.stat().st_mode) for path in store.path.parent.iterdir()}
    reader.close()
    assert modes == {0o600}
    assert stat.S_IMODE(store.path.parent.stat().st_mode) == 0o700


def test_a_rotated_key_has_a_new_secret_at_once(store: KeyStore) -> None:
    key, old = store.create("alice")
    rotated, new = store.rotate(key.key_id)
    assert (rotated.key_id, rotated.tenant) == (key.key_id, key.tenant)
    assert (tenant_of(store, old), tenant_of(store, new)) == (None, key.tenant)


def test_a_rotated_key_keeps_its_old_secret_for_the_time_given(store: KeyStore) -> None:
    key, old = store.create("alice")
    rotated, new = store.rotate(key.key_id, grace_s=60)
    assert tenant_of(store, new, rotated.old_until + 1) == key.tenant
    assert tenant_of(store, old, rotated.old_until - 1) == key.tenant
    assert tenant_of(store, old, rotated.old_until) is None


def test_rotating_twice_does_not_lengthen_the_first_secrets_time(store: KeyStore) -> None:
    key, first = store.create("alice")
    until = store.rotate(key.key_id, grace_s=60)[0].old_until
    store.rotate(key.key_id, grace_s=6000)
    assert tenant_of(store, first, until) is None
    store.rotate(key.key_id)
    assert tenant_of(store, first) is None


def test_a_revoked_key_ends_and_stays_in_the_list(store: KeyStore) -> None:
    key, secret = store.create("alice")
    store.rotate(key.key_id, grace_s=60)
    store.revoke(key.key_id)
    assert tenant_of(store, secret) is None
    assert [entry.revoked > 0 for entry in store.entries()] == [True]


def test_revoking_the_last_key_does_not_open_the_server(store: KeyStore) -> None:
    key, _ = store.create()
    store.revoke(key.key_id)
    assert store.secrets() == ()
    assert tenant_of(store, "") is None


@pytest.mark.parametrize("change", [KeyStore.rotate, KeyStore.revoke])
def test_only_an_active_key_can_be_changed(store: KeyStore, change: Callable[..., object]) -> None:
    with pytest.raises(NotFound, match="no keys"):
        change(store, "abc")
    key, _ = store.create()
    with pytest.raises(NotFound, match="'abc'"):
        change(store, "abc")
    store.revoke(key.key_id)
    with pytest.raises(BadRequest, match="is revoked already"):
        change(store, key.key_id)


def test_a_key_given_for_an_id_is_not_repeated(store: KeyStore) -> None:
    _, secret = store.create()
    with pytest.raises(NotFound) as caught:
        store.revoke(secret)
    assert secret not in str(caught.value)


@pytest.mark.parametrize("grace_s", [-1, float("nan"), float("inf")])
def test_a_time_that_cannot_be_is_refused(store: KeyStore, grace_s: float) -> None:
    key, secret = store.create()
    with pytest.raises(BadRequest, match="grace"):
        store.rotate(key.key_id, grace_s)
    assert tenant_of(store, secret) == key.tenant


def test_active_keys_are_bounded(store: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_store, "MAX_KEYS", 1)
    key, _ = store.create()
    with pytest.raises(BadRequest, match="1 keys are active, at most 1"):
        store.create()
    store.revoke(key.key_id)
    store.create()


def test_two_commands_at_a_time_make_one_file(store: KeyStore) -> None:
    other = KeyStore(store.path.parent)
    store._ensure()
    other._ensure()
    keys = [store.create("alice")[0], other.create("alice")[0]]
    assert store.entries() == keys
    assert [path.name for path in store.path.parent.iterdir()] == ["keys.sqlite"]


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def scramble(content: bytes) -> bytes:
    return content[:200] + b"\xff" * 8000 + content[8200:]


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda content: b"", id="empty"),
        pytest.param(lambda content: b"not a database", id="text"),
        pytest.param(cut, id="cut"),
        pytest.param(scramble, id="scrambled"),
    ],
)
def test_a_damaged_file_is_an_error_and_never_open(
    store: KeyStore, damage: Callable[[bytes], bytes]
) -> None:
    store.create("alice")
    store.path.write_bytes(damage(store.path.read_bytes()))
    for use in (store.secrets, store.entries, store.create, lambda: store.revoke("x")):
        with pytest.raises(BadRequest, match="damaged"):
            use()


def test_a_file_of_another_version_is_an_error(store: KeyStore) -> None:
    store.create()
    file = sqlite3.connect(store.path)
    file.execute("PRAGMA user_version = 9")
    file.close()
    with pytest.raises(BadRequest, match="version 9, not 1"):
        store.secrets()


def test_a_directory_that_takes_no_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    with pytest.raises(BadRequest, match="cannot hold keys"):
        KeyStore(tmp_path / "state").create()
