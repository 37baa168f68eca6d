"""The tables of the documents that repeat tables of the code; run it to write them."""

from pathlib import Path

from weft.client.errors import CODES
from weft.client.limits import LIMITS
from weft.client.losses import LOSSES, LossInput
from weft.client.waiting import REASONS
from weft.engine.gateway.engine_figures import ENGINE
from weft.engine.gateway.gateway_figures import GATEWAY, SCRAPE

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


def figures_table() -> str:
    """Every figure of `/metrics`, as a Markdown table."""
    rows = [
        f"| `{row.shown}` | {' '.join(f'`{label}`' for label in row.labels)} | {row.kind} | "
        f"{row.meaning} |"
        for row in (*SCRAPE, *ENGINE, *GATEWAY)
    ]
    return _table("| figure | labels | kind | meaning |", rows)


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
    "operations.md": figures_table,
    "waiting.md": reasons_table,
}


def split(text: str, table: str) -> tuple[str, str, str]:
    """What stands before the table that has the same head as `table`, it, and what follows."""
    lines = text.splitlines(keepends=True)
    first = lines.index(table.splitlines(keepends=True)[0])
    rest = (index for index in range(first, len(lines)) if not lines[index].startswith("|"))
    last = next(rest, len(lines))
    return "".join(lines[:first]), "".join(lines[first:last]), "".join(lines[last:])


def write() -> None:
    """Replace the tables by those of the code."""
    for name, table in TABLES.items():
        path = DOCS / name
        written = table()
        before, _, after = split(path.read_text(), written)
        path.write_text(before + written + after)


def _code(code: str) -> str:
    return f"`{code}`" if code else ""


def _table(head: str, rows: list[str]) -> str:
    line = "|" + " --- |" * (head.count(" | ") + 1)
    return "\n".join([head, line, *rows]) + "\n"


if __name__ == "__main__":
    write()
