"""The time after which a checkpoint is deleted."""

from typing import Any

import pytest

from weft.client.errors import BadRequest
from weft.client.ttl import MAX_TTL_S, check_ttl


@pytest.mark.parametrize(("given", "seconds"), [(None, 0), (1, 1), (MAX_TTL_S, MAX_TTL_S)])
def test_none_is_for_ever(given: int | None, seconds: int) -> None:
    assert check_ttl(given) == seconds


@pytest.mark.parametrize("given", [0, -1, MAX_TTL_S + 1, 1.5, True, "60"])
def test_what_is_no_time_is_refused(given: Any) -> None:
    with pytest.raises(BadRequest, match="ttl_seconds is"):
        check_ttl(given)


def test_ten_years_are_the_most() -> None:
    assert MAX_TTL_S == 10 * 365 * 24 * 3600
