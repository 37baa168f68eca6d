"""Reading fields of the JSON files of a checkpoint, each refused by its name when it is wrong."""

import json
from collections.abc import Mapping
from pathlib import Path

from ...client.errors import BadRequest, NotFound


def read_json(path: Path) -> dict[str, object]:
    """The object in a file; raises NotFound or BadRequest with the file's name."""
    try:
        fields = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise NotFound(f"{path} does not exist") from None
    except (ValueError, OSError) as error:
        raise BadRequest(f"{path} cannot be read: {error}") from error
    if not isinstance(fields, dict):
        raise BadRequest(f"{path} does not hold a JSON object")
    return fields


def count(fields: Mapping[str, object], key: str, default: int | None = None) -> int:
    """Read a positive whole number; null counts as absent."""
    value = fields.get(key)
    if value is None:
        value = default
    if value is None:
        raise BadRequest(f"config.json lacks {key}")
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise BadRequest(f"{key} is {value!r}, not a positive whole number")
    return value


def positive(fields: Mapping[str, object], key: str, default: float | None = None) -> float:
    """Read a positive number; null counts as absent."""
    value = fields.get(key)
    if value is None:
        value = default
    if value is None:
        raise BadRequest(f"config.json lacks {key}")
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e30:
        raise BadRequest(f"{key} is {value!r}, not a positive number")
    return float(value)


def flag(fields: Mapping[str, object], key: str, default: bool = False) -> bool:
    """Read true or false; null counts as absent."""
    value = fields.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise BadRequest(f"{key} is {value!r}, not true or false")
    return value


def token_ids(fields: Mapping[str, object], key: str) -> tuple[int, ...]:
    """Read one token id, a list of them, or nothing."""
    value = fields.get(key)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in ids):
        raise BadRequest(f"{key} is {value!r}, not a token id or a list of them")
    return tuple(ids)
