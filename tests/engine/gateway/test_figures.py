"""Where a figure's values are found in plain data."""

import pytest

from weft.engine.gateway.engine_figures import ENGINE
from weft.engine.gateway.figures import (
    Point,
    Spread,
    at,
    each,
    each_of_each,
    gauge,
    keyed,
    some,
    spreads,
)
from weft.engine.gateway.gateway_figures import GATEWAY, SCRAPE

SOURCE = {
    "bounds": {"seconds": [1.0, 2.0]},
    "one": {"two": 3},
    "maps": {"b": {"x": 1}, "a": {"z": 2, "y": 3}},
    "pairs": {("r", "GET", 200): 5},
    "spreads": {"s": {"counts": [1, 0, 2], "sum": 9.5}, "odd": {"counts": [1], "sum": 1.0}},
}
FIGURES = (*SCRAPE, *ENGINE, *GATEWAY)


def test_a_number_is_found_at_its_path() -> None:
    assert list(at("one", "two")(SOURCE)) == [Point((), 3)]


def test_a_path_that_leads_nowhere_has_no_value() -> None:
    for read in (at("one", "three"), at("no", "two"), each("no"), keyed("no"), some({}, "no")):
        assert list(read(SOURCE)) == []


def test_maps_give_their_keys_as_labels_in_order() -> None:
    assert list(each("one")(SOURCE)) == [Point(("two",), 3)]
    found = [Point(("a", "y"), 3), Point(("a", "z"), 2), Point(("b", "x"), 1)]
    assert list(each_of_each("maps")(SOURCE)) == found
    assert list(keyed("pairs")(SOURCE)) == [Point(("r", "GET", "200"), 5)]


def test_some_numbers_of_a_map_get_other_labels() -> None:
    assert list(some({"two": "deux", "none": "nul"}, "one")(SOURCE)) == [Point(("deux",), 3)]


def test_a_histogram_with_other_bounds_than_said_is_left_out() -> None:
    found = Spread(("s",), (1.0, 2.0), (1, 0, 2), 9.5)
    assert list(spreads("seconds", "spreads")(SOURCE)) == [found]


def test_only_a_counter_is_asked_for_as_a_total() -> None:
    counters = [figure for figure in FIGURES if figure.shown.endswith("_total")]
    assert [figure.kind for figure in counters] == ["counter"] * len(counters)
    assert len(counters) == sum(figure.kind == "counter" for figure in FIGURES)
    assert gauge("weft_runs", "", at()).shown == "weft_runs"


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.name)
def test_every_figure_has_a_name_of_its_own_and_a_sentence(figure: object) -> None:
    names = [each.name for each in FIGURES]
    name, meaning = figure.name, figure.meaning  # type: ignore[attr-defined]
    assert names.count(name) == 1
    assert name.startswith("weft_")
    assert meaning[0].isupper() or meaning[0] == "1"
    assert meaning.endswith(".")
    if "bytes" in name or "seconds" in name:  # units stand at the end
        assert name.endswith(("_bytes", "_seconds"))
