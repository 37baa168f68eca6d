"""The tables of the documents that repeat tables of the code; run it to write them."""

from pathlib import Path

from weft.client.errors import CODES
from weft.client.limits import LIMITS
from weft.client.waiting import REASONS

DOCS = Path(__file__).resolve().parents[2] / "docs"


def errors_table() -> str:
    """Every stable error code, as a Markdown table."""
    rows = [
        f"| `{code}` | `{row.exception.__name__}` | {row.fault} | {row.http_status} | {row.meaning} |"
        for code, row in CODES.items()
    ]
    return _table("| code | exception | fault | HTTP | meaning |", rows)


def limits_table() -> str:
    """Every limit, as a Markdown table."""
    rows = [
        f"| `{name}` | {row.default:,.10g} | {row.unit} | {_code(row.code)} | {row.meaning} |"
        for name, row in LIMITS.items()
    ]
    return _table("| limit | default | unit | error | meaning |", rows)


def reasons_table() -> str:
    """Every reason for waiting, as a Markdown table."""
    rows = [
        f"| `{code}` | {row.told_by} | {row.meaning} | {row.remedy} |"
        for code, row in REASONS.items()
    ]
    return _table("| code | told by | meaning | what helps |", rows)


TABLES = {"errors.md": errors_table, "limits.md": limits_table, "waiting.md": reasons_table}


def split(text: str) -> tuple[str, str, str]:
    """What stands before the table of a document, the table, and what follows."""
    lines = text.splitlines(keepends=True)
    rows = [index for index, line in enumerate(lines) if line.startswith("|")]
    first, last = rows[0], rows[-1] + 1
    return "".join(lines[:first]), "".join(lines[first:last]), "".join(lines[last:])


def write() -> None:
    """Replace the tables by those of the code."""
    for name, table in TABLES.items():
        path = DOCS / name
        before, _, after = split(path.read_text())
        path.write_text(before + table() + after)


def _code(code: str) -> str:
    return f"`{code}`" if code else ""


def _table(head: str, rows: list[str]) -> str:
    line = "|" + " --- |" * (head.count(" | ") + 1)
    return "\n".join([head, line, *rows]) + "\n"


if __name__ == "__main__":
    write()
