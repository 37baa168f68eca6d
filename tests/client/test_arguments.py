"""What a caller passes by mistake is a sentence, whatever its type."""

import pytest

from weft.client.arguments import is_number, require_type, shown
from weft.client.errors import BadRequest


@pytest.mark.parametrize("value", [0, -1, 1.5, 2**100])
def test_finite_numbers_are_numbers(value: object) -> None:
    assert is_number(value)


@pytest.mark.parametrize("value", [True, "1", None, float("nan"), float("inf"), 10**400])
def test_everything_else_is_none(value: object) -> None:
    assert not is_number(value)


def test_another_type_is_refused_with_the_value_and_what_was_wanted() -> None:
    require_type("name", "a", str, "a string")
    with pytest.raises(BadRequest, match="name is None, not a string"):
        require_type("name", None, str, "a string")


def test_a_long_value_is_cut() -> None:
    assert shown("x" * 300) == "'" + "x" * 199 + "..."
