"""What a gateway counts of itself."""

import asyncio

import pytest

from weft.engine.gateway.counters import GatewayCounters


def test_a_request_counts_under_its_route_method_and_status() -> None:
    counters = GatewayCounters()
    for status in (200, 200, 404):
        counters.answered("/a/{id}", "GET", status, 0.01, received=5, sent=7)
    assert counters.requests == {("/a/{id}", "GET", 200): 2, ("/a/{id}", "GET", 404): 1}
    assert sum(counters.durations["/a/{id}"].counts) == 3
    assert (counters.received_bytes, counters.sent_bytes) == (15, 21)


def test_methods_that_peers_make_up_count_as_one() -> None:
    counters = GatewayCounters()
    for number in range(100):
        counters.answered("unmatched", f"METHOD{number}", 404, 0.01, received=0, sent=0)
    assert counters.requests == {("unmatched", "other", 404): 100}


def test_a_poll_is_parked_until_its_wait_ends_however_that_ends() -> None:
    counters = GatewayCounters()
    with counters.parked():
        with counters.parked():
            assert counters.parked_polls == 2
        assert counters.parked_polls == 1
        with pytest.raises(asyncio.CancelledError), counters.parked():
            raise asyncio.CancelledError
        assert counters.parked_polls == 1
    assert counters.parked_polls == 0


def test_bodies_that_are_refused_count_by_reason() -> None:
    counters = GatewayCounters()
    for reason in ("too_large", "malformed", "too_large"):
        counters.refused_body(reason)
    assert counters.to_fields()["refused_bodies"] == {"too_large": 2, "malformed": 1}
