"""Names, ids and paths: how they are written and read, in one place.

run          <session_id>:train:<n>
sampler      <session_id>:sample:<n>
checkpoint   weft://<run_id>/weights/<name>           a training state
             weft://<run_id>/sampler_weights/<name>   weights to sample from
             weft://<run_id>/external_weights/<name>  an adapter for programs elsewhere
"""

import re
from dataclasses import dataclass

from .arguments import require_type, shown
from .errors import BadRequest
from .limits import limit

SCHEME = "weft://"
KINDS = ("weights", "sampler_weights", "external_weights")
_MAX_LENGTH = limit("name_length")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=+@-]*")
_RUN_ID = re.compile(r"[0-9a-f]{32}:train:[0-9]{1,9}")


@dataclass(frozen=True, slots=True)
class CheckpointPath:
    """The three parts of a checkpoint's path."""

    run_id: str
    kind: str  # one of `KINDS`
    name: str

    def __str__(self) -> str:
        return f"{SCHEME}{self.run_id}/{self.kind}/{self.name}"


def check_name(name: str) -> str:
    """Return a checkpoint's name that is safe as the name of a file.

    Raises:
        BadRequest: empty, too long, or with a character other than letters, digits and `_.=+@-`;
            no name begins with a dot or holds two dots in a row.
    """
    require_type("a checkpoint's name", name, str, "a string")
    if len(name) > _MAX_LENGTH:
        raise BadRequest(f"a name of {len(name)} characters, at most {_MAX_LENGTH}")
    if not _NAME.fullmatch(name) or ".." in name:
        raise BadRequest(f"{name!r} is no name: letters, digits and _.=+@- only, and no '..'")
    return name


def parse_path(path: str) -> CheckpointPath:
    """Read a checkpoint's path.

    Raises:
        BadRequest: it is not of the form above.
    """
    require_type("a checkpoint's path", path, str, "a string")
    parts = path.removeprefix(SCHEME).split("/")
    if not path.startswith(SCHEME) or len(parts) != 3 or parts[1] not in KINDS:
        raise BadRequest(
            f"{shown(path)} is no path: weft://<run_id>/<kind>/<name> of kind {', '.join(KINDS)}"
        )
    run_id, kind, name = parts
    if not _RUN_ID.fullmatch(run_id):
        raise BadRequest(f"{shown(run_id)} in {shown(path)} is no run id")
    return CheckpointPath(run_id, kind, check_name(name))


def format_run_id(session_id: str, number: int) -> str:
    """The id of the run that a session opens as its `number`-th, from 0."""
    return f"{session_id}:train:{number}"


def format_sampler_id(session_id: str, number: int) -> str:
    """The id of the sampler that a session opens as its `number`-th, from 0."""
    return f"{session_id}:sample:{number}"
