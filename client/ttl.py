"""The time after which a checkpoint is deleted."""

from .errors import BadRequest
from .limits import limit

MAX_TTL_S = limit("ttl_s")


def check_ttl(ttl_seconds: int | None) -> int:
    """Return a time to live in seconds, 0 for None, which means for ever.

    Raises:
        BadRequest: not a whole number of seconds from 1 to ten years.
    """
    if ttl_seconds is None:
        return 0
    if type(ttl_seconds) is not int or not 1 <= ttl_seconds <= MAX_TTL_S:
        raise BadRequest(
            f"ttl_seconds is {ttl_seconds!r}, not None or a whole number from 1 to {MAX_TTL_S}"
        )
    return ttl_seconds
