"""Logs of a server: a line of text or of JSON for each record, with fields.

    log.info("session opened", extra=with_fields(session_id=session_id, tenant=tenant))

    with log_fields(request_id=request_id, route=route):
        ...  # every record of this thread or task has them

Fields are ids, counts, codes and times. What a tenant sends (tokens, loss inputs, prompts, metadata,
keys) is never logged.
"""

import json
import logging
import math
import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, TextIO

FORMATS = ("text", "json")
LEVELS = ("debug", "info", "warning", "error")
RESERVED = frozenset({"time", "level", "logger", "message", "process", "exception"})
MAX_VALUE = 2000  # characters of one field

_NOTHING: Mapping[str, Any] = MappingProxyType({})
_attached: ContextVar[Mapping[str, Any]] = ContextVar("weft_log_fields", default=_NOTHING)
# Whoever writes a line break or a terminal's control into a name could otherwise forge a log.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160), 0x2028, 0x2029)}


def with_fields(**fields: Any) -> dict[str, Any]:
    """The `extra` of a log call that has these fields; None and "" are left out.

    Raises:
        ValueError: a name is one of `RESERVED`.
    """
    return {"fields": _checked(fields)}


@contextmanager
def log_fields(**fields: Any) -> Iterator[None]:
    """Attach fields to every record of this thread or task while the block runs; blocks nest.

    Raises:
        ValueError: a name is one of `RESERVED`.
    """
    token = _attached.set({**_attached.get(), **_checked(fields)})
    try:
        yield
    finally:
        _attached.reset(token)


def set_up_logs(
    form: str = "text", level: str = "warning", *, who: str = "", stream: TextIO | None = None
) -> None:
    """Write the records of this process to `stream`, stderr unless given.

    Replaces what it set up before. Records of other packages are written from WARNING on: below it
    some of them tell addresses and headers.

    Args:
        form: one of `FORMATS`.
        level: one of `LEVELS`, of Weft's own records.
        who: the process, such as "worker"; a field of JSON, the begin of a line of text.
    """
    root = logging.getLogger()
    for handler in root.handlers:
        if isinstance(handler, _Handler):
            root.removeHandler(handler)
            break
    handler = _Handler(stream)
    handler.setFormatter(JsonFormatter(who) if form == "json" else TextFormatter(who))
    handler.addFilter(_is_ours_or_grave)
    root.addHandler(handler)
    root.setLevel(level.upper())
    logging.captureWarnings(form == "json")  # Python's own would be lines that are no JSON


def add_log_options(parser: ArgumentParser) -> None:
    """Options of a command that serves; `log_level` is "" unless given."""
    parser.add_argument("--log-format", choices=FORMATS, default="text", help="of lines on stderr")
    parser.add_argument("--log-level", choices=LEVELS, default="", help="warning unless given")


class _Handler(logging.StreamHandler[TextIO]):
    """Writes to a stream, or to whatever stderr is at the time."""

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__(stream)
        self._is_stderr = stream is None

    def emit(self, record: logging.LogRecord) -> None:
        if self._is_stderr:
            self.stream = sys.stderr
        super().emit(record)


def _is_ours_or_grave(record: logging.LogRecord) -> bool:
    return record.name.partition(".")[0] == "weft" or record.levelno >= logging.WARNING


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC, ISO 8601), level, logger, message, and the fields."""

    def __init__(self, who: str = "") -> None:
        super().__init__()
        self._who = {"process": who} if who else {}

    def format(self, record: logging.LogRecord) -> str:
        """Build the line, without its end."""
        line: dict[str, Any] = {
            "time": _utc(record.created),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **self._who,
            **{name: _plain(value) for name, value in _fields_of(record).items()},
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


class TextFormatter(logging.Formatter):
    """One line for people: time, level, logger, message, name=value; then the traceback if any."""

    def __init__(self, who: str = "") -> None:
        super().__init__()
        self._who = f"{who}: " if who else ""

    def format(self, record: logging.LogRecord) -> str:
        """Build the line, without its end."""
        fields = [f"{name}={_plain(value)}" for name, value in _fields_of(record).items()]
        text = " ".join([record.getMessage(), *fields]).translate(_CONTROLS)
        line = f"{self._who}{_utc(record.created)} {record.levelname} {record.name}: {text}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def _fields_of(record: logging.LogRecord) -> dict[str, Any]:
    return {**_attached.get(), **getattr(record, "fields", _NOTHING)}


def _checked(fields: dict[str, Any]) -> dict[str, Any]:
    taken = RESERVED & fields.keys()
    if taken:
        raise ValueError(f"{min(taken)!r} is no name for a field of a log")
    return {name: value for name, value in fields.items() if value not in (None, "")}


def _plain(value: Any) -> Any:
    """What JSON can hold: the value, or its words."""
    if isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    words = str(value)
    return words if len(words) <= MAX_VALUE else words[: MAX_VALUE - 3] + "..."


def _utc(created: float) -> str:
    moment = datetime.fromtimestamp(created, UTC)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
