"""Deficit round robin over lanes."""

import random
from collections import Counter

import pytest

from weft.engine.broker.lanes import Lanes

ANY = float("inf")


def drain(lanes: Lanes[str]) -> list[str]:
    served = []
    while (item := lanes.pop(ANY)) is not None:
        lanes.check_integrity()
        served.append(item)
    return served


def test_a_lane_is_first_in_first_out() -> None:
    lanes: Lanes[str] = Lanes(10)
    for name in ("a1", "a2", "a3"):
        lanes.push("a", name, 5)
    assert drain(lanes) == ["a1", "a2", "a3"]


def test_equal_requests_of_two_lanes_alternate() -> None:
    lanes: Lanes[str] = Lanes(10)
    for number in range(3):
        lanes.push("a", f"a{number}", 10)
    for number in range(3):
        lanes.push("b", f"b{number}", 10)
    assert drain(lanes) == ["a0", "b0", "a1", "b1", "a2", "b2"]


def test_lanes_share_by_weight_not_by_count() -> None:
    lanes: Lanes[str] = Lanes(100)
    for number in range(100):
        lanes.push("small", f"s{number}", 10)
        lanes.push("large", f"l{number}", 100)
    first = Counter(item[0] for item in drain(lanes)[:66])
    assert first["s"] == 10 * first["l"]


def test_a_request_far_heavier_than_the_quantum_is_served_in_its_share() -> None:
    lanes: Lanes[str] = Lanes(1)
    lanes.push("large", "whale", 1_000_000)
    for number in range(3):
        lanes.push("small", f"s{number}", 400_000)
    assert drain(lanes) == ["s0", "s1", "whale", "s2"]


def test_a_lane_that_was_empty_gets_no_credit_for_its_absence() -> None:
    lanes: Lanes[str] = Lanes(10)
    lanes.push("a", "a0", 10)
    assert drain(lanes) == ["a0"]
    for number in range(2):
        lanes.push("b", f"b{number}", 10)
        lanes.push("a", f"a{number}", 10)
    assert drain(lanes) == ["b0", "a0", "b1", "a1"]


def test_what_does_not_fit_the_room_is_waited_for() -> None:
    lanes: Lanes[str] = Lanes(10)
    lanes.push("a", "heavy", 50)
    lanes.push("a", "light", 1)
    assert lanes.pop(49) is None
    assert lanes.pop(50) == "heavy"


def test_a_removed_request_is_not_served() -> None:
    lanes: Lanes[str] = Lanes(10)
    lanes.push("a", "a0", 5)
    lanes.push("a", "a1", 5)
    assert lanes.remove("a", "a0")
    assert not lanes.remove("a", "a0")
    assert not lanes.remove("b", "a1")
    assert (drain(lanes), lanes.weight, len(lanes)) == (["a1"], 0, 0)


@pytest.mark.parametrize("seed", range(5))
def test_no_lane_falls_behind_by_more_than_a_quantum_and_a_request(seed: int) -> None:
    """The bound of the paper: busy lanes differ by at most quantum + 2 of the largest weight."""
    source = random.Random(seed)
    lanes: Lanes[tuple[str, int]] = Lanes(64)
    for name in "abc":
        for _ in range(200):
            weight = source.randint(1, 100)
            lanes.push(name, (name, weight), weight)
    served: Counter[str] = Counter()
    while min(lanes.counts().values()) > 1 and len(lanes.counts()) == 3:
        item = lanes.pop(ANY)
        assert item is not None
        served[item[0]] += item[1]
        assert max(served[n] for n in "abc") - min(served[n] for n in "abc") <= 64 + 200


def test_a_place_counts_the_own_lane_and_the_others_apart() -> None:
    lanes: Lanes[str] = Lanes(10)
    tickets = [lanes.push("a", f"a{number}", 10) for number in range(4)]
    lanes.push("b", "b0", 10)
    lanes.push("c", "c0", 10)
    assert [lanes.place("a", ticket) for ticket in tickets] == [
        (1, 2, 2),
        (2, 2, 2),
        (3, 2, 2),
        (4, 2, 2),
    ]


def test_what_is_served_or_withdrawn_is_not_counted_before_a_place() -> None:
    lanes: Lanes[str] = Lanes(10)
    items = [f"a{number}" for number in range(6)]
    tickets = [lanes.push("a", item, 10) for item in items]
    assert lanes.remove("a", items[2])
    assert lanes.remove("a", items[4])
    assert lanes.place("a", tickets[5]).place == 4
    assert lanes.remove("a", items[0])
    assert lanes.pop(ANY) == "a1"
    lanes.check_integrity()
    assert lanes.place("a", tickets[5]).place == 2
