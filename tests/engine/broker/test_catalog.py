"""Checkpoints by path and owner."""

import pytest
from core_bench import RUN, SESSION, checkpoint

from weft.client.errors import BadRequest, NotFound
from weft.engine.broker.catalog import Catalog

PATH = f"weft://{RUN}/weights/a"


def test_a_checkpoint_is_found_by_its_owner_only() -> None:
    catalog = Catalog()
    catalog.add(checkpoint("a"))
    assert catalog.find(PATH, "local") == checkpoint("a")
    with pytest.raises(NotFound, match="no checkpoint"):
        catalog.find(PATH, "somebody else")


def test_a_public_checkpoint_is_found_by_all_and_changed_by_its_owner() -> None:
    catalog = Catalog()
    catalog.add(checkpoint("a", public=True))
    assert catalog.find(PATH, "somebody else") == catalog.find_own(PATH, "local")
    with pytest.raises(NotFound, match=f"^no checkpoint {PATH}$"):
        catalog.find_own(PATH, "somebody else")
    assert catalog.of("somebody else") == []


def test_a_tenant_has_the_runs_of_its_checkpoints() -> None:
    catalog = Catalog()
    other = f"{SESSION}:train:1"
    for record in (checkpoint("a"), checkpoint("b"), checkpoint("c", tenant="somebody else")):
        catalog.add(record)
    catalog.add(checkpoint("x", path=f"weft://{other}/weights/x"))
    catalog.remove(PATH)
    assert set(catalog.runs("local")) == {RUN, other}
    catalog.remove(f"weft://{RUN}/weights/b")
    assert (set(catalog.runs("local")), set(catalog.runs("nobody"))) == ({other}, set())


def test_a_checkpoint_that_changed_its_owner_is_counted_once() -> None:
    catalog = Catalog()
    catalog.add(checkpoint("a"))
    catalog.add(checkpoint("a", tenant="somebody else"))
    assert (catalog.count("local"), catalog.count("somebody else")) == (0, 1)


def test_what_is_no_path_is_a_bad_request() -> None:
    with pytest.raises(BadRequest, match="is no path"):
        Catalog().find("/etc/passwd", "local")


def test_an_overwritten_checkpoint_counts_once() -> None:
    catalog = Catalog()
    catalog.add(checkpoint("a"))
    catalog.add(checkpoint("a", size_bytes=20))
    assert catalog.count("local") == 1
    assert catalog.find(PATH, "local").size_bytes == 20


def test_a_list_is_of_one_tenant_newest_first() -> None:
    catalog = Catalog()
    other = f"{SESSION}:train:1"
    catalog.add(checkpoint("old", created=1.0))
    catalog.add(checkpoint("new", created=2.0))
    catalog.add(checkpoint("x", path=f"weft://{other}/weights/x", created=3.0))
    catalog.add(checkpoint("foreign", tenant="somebody else", created=4.0))
    names = [entry.path.rpartition("/")[2] for entry in catalog.of("local")]
    assert names == ["x", "new", "old"]
    assert [entry.path for entry in catalog.of("local", other)] == [f"weft://{other}/weights/x"]


def test_a_removed_checkpoint_is_no_longer_counted() -> None:
    catalog = Catalog()
    catalog.add(checkpoint("a"))
    catalog.remove(PATH)
    assert (PATH in catalog, catalog.count("local"), catalog.of("local")) == (False, 0, [])


def test_an_expiry_is_told_once_and_only_if_it_still_holds() -> None:
    catalog = Catalog()
    catalog.add(checkpoint("a", expires=5.0))
    catalog.add(checkpoint("b", expires=3.0))
    catalog.add(checkpoint("c", expires=4.0))
    catalog.add(checkpoint("c", expires=9.0))
    catalog.add(checkpoint("d"))
    assert [entry.path[-1] for entry in catalog.take_expired(4.9)] == ["b"]
    assert [entry.path[-1] for entry in catalog.take_expired(9.0)] == ["a", "c"]
    assert catalog.take_expired(99.0) == []


def test_a_checkpoint_that_came_back_to_its_path_expires_once() -> None:
    catalog = Catalog()
    catalog.add(checkpoint("a", expires=5.0))
    catalog.remove(PATH)
    catalog.add(checkpoint("a", expires=5.0))
    assert [entry.path for entry in catalog.take_expired(6.0)] == [PATH]


def test_expiries_that_were_put_off_are_forgotten() -> None:
    catalog = Catalog()
    for number in range(10_000):
        catalog.add(checkpoint("a", expires=1e9 + number))
    assert catalog.num_expiries < 100
    assert [entry.expires for entry in catalog.take_expired(2e9)] == [1e9 + 9999]
