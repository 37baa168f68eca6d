"""Names that the SDK and the broker know things by, and the numbers of its requests."""

import hashlib
import re

from ...client.arguments import shown
from ...client.errors import BadRequest
from ...client.paths import KINDS, SCHEME, parse_path

SDK_SCHEME = "tinker://"

_FUTURE_ID = re.compile(r"([0-9a-f]{32}):([0-9]{1,19})")
_LEAST = 1 << 61  # below are the numbers that a line gives to requests of its own


def to_weft(path: str) -> str:
    """The broker's form of a checkpoint's path.

    Raises:
        BadRequest: it is no such path.
    """
    if path.startswith(SDK_SCHEME):
        try:
            return str(parse_path(SCHEME + path.removeprefix(SDK_SCHEME)))
        except BadRequest:
            pass  # its words are about the broker's form
    raise BadRequest(
        f"{shown(path)} is no path of a checkpoint, which is {SDK_SCHEME}<run id>/<kind>/<name> "
        f"with one of {', '.join(KINDS)} as its kind"
    )


def from_weft(path: str) -> str:
    """The SDK's form of a path that came from the broker."""
    return SDK_SCHEME + path.removeprefix(SCHEME)


def future_id(session_id: str, number: int) -> str:
    """What the SDK asks for the answer of a request by."""
    return f"{session_id}:{number}"


def parse_future_id(request_id: str) -> tuple[str, int]:
    """The session and number of a request.

    Raises:
        BadRequest: this gateway gives no such ids.
    """
    found = _FUTURE_ID.fullmatch(request_id)
    if found is None or not _LEAST <= int(found[2]) < 2 * _LEAST:
        raise BadRequest(f"{shown(request_id)} is no request_id")
    return found[1], int(found[2])


def request_number(kind: str, owner: str, seq: int) -> int:
    """The number of a request at the broker, the same for every repeat of it.

    From 2**61 up to 2**62, a hash of what it is: two requests of one session share a number with
    a probability of 1 in 10**9 once there are 70,000 of them.

    Args:
        kind: "command", "sample" and so on.
        owner: the id of its run, sampler or session.
        seq: the SDK's own number.
    """
    text = f"{kind}\0{owner}\0{seq}".encode()
    digest = hashlib.blake2b(text, digest_size=8, person=b"weft-request").digest()
    return _LEAST | int.from_bytes(digest, "little") % _LEAST
