"""Pages of lists."""

from typing import Any

import pytest

from weft.client.messages import Query
from weft.engine.broker.paging import ENTRY_BYTES, PAGE_BYTES, cut, page, trimmed


def ask(offset: int = 0, limit: int = 0) -> Query:
    return Query(request_id=1, what="runs", offset=offset, limit=limit)


@pytest.mark.parametrize(
    ("offset", "limit", "expected"),
    [
        pytest.param(0, 0, ([0, 1, 2, 3, 4], -1), id="all"),
        pytest.param(0, 2, ([0, 1], 2), id="first"),
        pytest.param(2, 2, ([2, 3], 4), id="middle"),
        pytest.param(4, 2, ([4], -1), id="last"),
        pytest.param(0, 5, ([0, 1, 2, 3, 4], -1), id="exactly all"),
        pytest.param(5, 2, ([], -1), id="just beyond"),
        pytest.param(2**60, 2**60, ([], -1), id="far beyond"),
    ],
)
def test_a_page_has_at_most_its_limit_and_says_where_to_go_on(
    offset: int, limit: int, expected: tuple[list[int], int]
) -> None:
    entries, rest = cut(range(5), int, ask(offset, limit))
    assert (entries, rest["next"], rest["total"]) == (*expected, 5)


def test_a_page_ends_before_it_is_too_long_but_has_something() -> None:
    things = ["x" * 15_000] * 3 + ["y" * 50_000]
    sizes = []
    offset = 0
    while offset >= 0:
        entries, rest = cut(things, str, ask(offset, 4))
        sizes.append(len(entries))
        offset = rest["next"]
    assert sizes == [2, 1, 1]
    assert 2 * 15_000 < PAGE_BYTES < 3 * 15_000


def test_long_metadata_is_left_out_of_a_list_of_several_and_said_to_be() -> None:
    long = {"user_metadata": {"a": "x" * ENTRY_BYTES}}
    few: list[dict[str, Any]] = [long]
    several: list[dict[str, Any]] = [long, {"user_metadata": {}}]
    (alone,) = page("runs", few, dict, ask())["runs"]
    first, second = page("runs", several, dict, ask())["runs"]
    assert (alone, second) == (long, {"user_metadata": {}})
    assert first == {"user_metadata": {}, "omitted": "user_metadata"}


def test_an_entry_that_fits_is_told_as_it_is() -> None:
    entry: dict[str, Any] = {"user_metadata": {"a": "b"}}
    assert trimmed(entry, 100) is entry
    assert trimmed(entry, 5) == {"user_metadata": {}, "omitted": "user_metadata"}
