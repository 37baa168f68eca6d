"""Counting values by size."""

import pytest

from weft.engine.histogram import Histogram


@pytest.mark.parametrize(
    ("value", "place"), [(0.0, 0), (1.0, 0), (1.5, 1), (2.0, 1), (5.0, 2), (5.1, 3), (1e9, 3)]
)
def test_a_value_counts_up_to_and_with_its_bound(value: float, place: int) -> None:
    histogram = Histogram((1.0, 2.0, 5.0))
    histogram.add(value)
    assert histogram.counts == [int(index == place) for index in range(4)]


def test_what_is_told_does_not_change_later() -> None:
    histogram = Histogram((1.0,))
    histogram.add(0.5)
    told = histogram.to_fields()
    histogram.add(2.0)
    assert told == {"counts": [1, 0], "sum": 0.5}
    assert histogram.to_fields() == {"counts": [1, 1], "sum": 2.5}
