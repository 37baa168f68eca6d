"""Checks of what a caller passes, so that a mistake is a sentence and not a traceback from inside."""

from math import isfinite
from typing import TypeGuard

from .errors import BadRequest

_SHOWN = 200  # characters of a refused value


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether it is a finite number that fits into a float, and no bool."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return isfinite(value)
    except OverflowError:
        return False


def require_type(name: str, value: object, kind: type | tuple[type, ...], what: str) -> None:
    """Refuse an argument of another type.

    Args:
        name: what the caller knows it as.
        value: the argument.
        kind: what it must be an instance of.
        what: that in words, such as "a string".

    Raises:
        BadRequest: it is none.
    """
    if not isinstance(value, kind):
        raise BadRequest(f"{name} is {shown(value)}, not {what}")


def require_int(name: str, value: object, low: int, high: int) -> None:
    """Refuse an argument that is no integer from `low` to `high`; a bool is none.

    Raises:
        BadRequest: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BadRequest(f"{name} is {shown(value)}, not an integer from {low} to {high}")


def shown(value: object) -> str:
    """A value as a message shows it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
