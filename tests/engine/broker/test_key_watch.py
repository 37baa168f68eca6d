"""A server's glance at the file of keys: what it notices, and what it makes of damage."""

import logging
from pathlib import Path

import pytest

from weft.client.errors import BadRequest
from weft.engine.broker.key_store import KeyStore
from weft.engine.broker.key_watch import KeyWatch


def test_a_glance_notices_every_change_once(tmp_path: Path) -> None:
    store, watch = KeyStore(tmp_path), KeyWatch(KeyStore(tmp_path))
    assert not watch.glance()
    assert watch.secrets is None
    key, _ = store.create()
    assert watch.glance()
    assert not watch.glance()
    for change in (lambda: store.rotate(key.key_id), lambda: store.revoke(key.key_id)):
        change()
        assert watch.glance()
        assert watch.secrets == store.secrets()
        assert not watch.glance()
    watch.close()


def test_a_file_put_in_place_of_another_is_noticed(tmp_path: Path) -> None:
    store, other = KeyStore(tmp_path / "a"), KeyStore(tmp_path / "b")
    store.create()
    other.create()
    watch = KeyWatch(store)
    other.path.rename(store.path)
    assert watch.glance()
    assert watch.secrets == store.secrets()
    watch.close()


def test_a_server_does_not_start_with_a_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "keys.sqlite").write_text("not a database")
    with pytest.raises(BadRequest, match=r"keys\.sqlite is damaged"):
        KeyWatch(KeyStore(tmp_path))


def test_a_file_that_was_never_readable_lets_nobody_in(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watch = KeyWatch(KeyStore(tmp_path))
    (tmp_path / "keys.sqlite").write_text("not a database")
    assert watch.glance()
    assert watch.secrets == ()
    assert not watch.glance()
    (record,) = caplog.records
    assert "no key will count meanwhile" in record.getMessage()
    (tmp_path / "keys.sqlite").unlink()
    assert not watch.glance()
    KeyStore(tmp_path).create()
    assert watch.glance()
    assert len(watch.secrets or ()) == 1
    watch.close()


@pytest.mark.parametrize("is_removed", [True, False])
def test_keys_read_before_a_file_was_damaged_go_on_to_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, is_removed: bool
) -> None:
    store = KeyStore(tmp_path)
    store.create()
    watch = KeyWatch(store)
    before, good = watch.secrets, store.path.read_bytes()
    store.path.unlink()
    if not is_removed:
        store.path.write_text("not a database")
    with caplog.at_level(logging.ERROR):
        assert not watch.glance()
        assert not watch.glance()
    assert watch.secrets == before != ()
    assert len(caplog.records) == 1
    store.path.write_bytes(good)
    assert not watch.glance()
    store.create()
    assert watch.glance()
    watch.close()
