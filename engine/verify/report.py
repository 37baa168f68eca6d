"""Print the table of a verification, and write it as JSON."""

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ...client.errors import BadRequest
from .record import Check

_WIDTH = 100
_INDENT = " " * 21
_PACKAGES = ("weft", "torch", "transformers", "tokenizers", "safetensors", "peft")


def lines_of(check: Check) -> list[str]:
    """A row as lines of text: status, name and figure, and the sentence below."""
    first = f"{check.status}  {check.name:13}  {check.figure}".rstrip()
    if not check.figure:
        head, *rest = textwrap.wrap(check.detail, _WIDTH - len(_INDENT)) or [""]
        return [f"{check.status}  {check.name:13}  {head}", *(_INDENT + line for line in rest)]
    lines = textwrap.wrap(check.detail, _WIDTH - len(_INDENT))
    return [first, *(_INDENT + line for line in lines)]


def summary_of(checks: Sequence[Check]) -> str:
    """How many rows there are of each status."""
    counts = dict.fromkeys(("PASS", "FAIL", "SKIP"), 0)
    for check in checks:
        counts[check.status] += 1
    return f"{counts['PASS']} passed, {counts['FAIL']} failed, {counts['SKIP']} skipped"


def require_writable(path: Path) -> None:
    """Refuse a file that cannot be written, before anything is computed; raises BadRequest."""
    try:
        path.open("a").close()
    except OSError as error:
        raise BadRequest(f"{path} cannot be written: {error.strerror}", "bad_request") from None


def write_json(path: Path, model: str, checks: Sequence[Check]) -> None:
    """Write all rows and the versions of what took part."""
    document = {
        "model": model,
        "versions": {name: _version(name) for name in _PACKAGES},
        "checks": [asdict(check) for check in checks],
    }
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
