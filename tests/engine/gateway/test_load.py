"""Bytes under way: a bound for all, and half of it for one."""

import pytest

from weft.client.errors import Busy
from weft.engine.gateway.load import Load


def test_one_tenant_gets_half_and_leaves_the_rest_to_others() -> None:
    load = Load(max_bytes=10)
    load.take("a", 5)
    with pytest.raises(Busy, match="yours"):
        load.take("a", 1)
    load.take("b", 5)
    assert load.num_bytes == 10


def test_what_is_refused_is_not_counted() -> None:
    load = Load(max_bytes=10)
    load.take("a", 5)
    load.take("b", 4)
    with pytest.raises(Busy, match="9 bytes"):
        load.take("c", 2)
    load.take("c", 1)


def test_what_has_gone_makes_room_and_leaves_no_trace() -> None:
    load = Load(max_bytes=10)
    load.take("a", 5)
    load.add("a", -5)
    assert (load.num_bytes, dict(load._by_tenant)) == (0, {})
