"""The tables of the documents that repeat tables of the code; run it to write them."""

from pathlib import Path

from weft.client.errors import CODES
from weft.client.limits import LIMITS
from weft.client.losses import LOSSES, LossInput
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


def losses_table() -> str:
    """Every loss, as a Markdown table."""
    rows = []
    for name, loss in LOSSES.items():
        inputs = ", ".join(map(_loss_input, loss.inputs))
        options = ", ".join(f"`{key}` {value:.10g}" for key, value in loss.config.items())
        rows.append(f"| `{name}` | {inputs} | {options} |")
    return _table("| loss | inputs | options and their defaults |", rows)


def _loss_input(item: LossInput) -> str:
    match item.default:
        case None:
            return f"`{item.name}`"
        case str():
            return f"[`{item.name}`: the option]"
        case _:
            return f"[`{item.name}`: {item.default:g}]"


TABLES = {
    "errors.md": errors_table,
    "limits.md": limits_table,
    "losses.md": losses_table,
    "waiting.md": reasons_table,
}


def split(text: str) -> tuple[str, str, str]:
    """What stands before the first table of a document, the table, and what follows."""
    lines = text.splitlines(keepends=True)
    first = next(index for index, line in enumerate(lines) if line.startswith("|"))
    rest = (index for index in range(first, len(lines)) if not lines[index].startswith("|"))
    last = next(rest, len(lines))
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
