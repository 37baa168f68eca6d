"""What `weft status` prints: models, workers, lanes and queues of a server, in small tables."""

from collections.abc import Mapping, Sequence
from typing import Any

GAP = "  "


def status_lines(address: str, status: Mapping[str, Any]) -> list[str]:
    """The answer to the query `status` as lines of text."""
    num = status["sessions"]
    lines = [f"{address} is {status['state']}, with {num} session{'' if num == 1 else 's'}"]
    if status["detail"]:
        lines.append(status["detail"])
    models = [
        [card["name"], card["model_type"], card["runs_on"], card["max_context"], card["vocab_size"]]
        for card in status["models"]
    ]
    lines += _table(("model", "type", "runs on", "context", "vocabulary"), models)
    lines += _table(
        ("worker", "pid", "state", "runs", "samplers", "under way", "queued", "train", "sample"),
        [_worker_row(worker) for worker in status["workers"]],
    )
    lines += _table(
        ("lane", "runs", "waiting", "bytes", "usage"),
        [
            [lane["lane"], lane["runs"], lane["waiting"], lane["waiting_bytes"], _usage(lane)]
            for lane in status.get("lanes", ())
        ],
    )
    lines += _table(  # what the operator is told instead
        ("tenant", "sessions", "runs", "waiting", "bytes", "usage"),
        [
            [
                tenant["tenant"],
                tenant["sessions"],
                tenant["runs"],
                tenant["waiting"],
                tenant["waiting_bytes"],
                _usage(tenant),
            ]
            for tenant in status.get("tenants", ())
        ],
    )
    if status["next"] >= 0:
        lines.append("more follow")
    return lines


def _worker_row(worker: Mapping[str, Any]) -> list[object]:
    state = worker["state"]
    if state == "loading":
        state = f"loading: {worker['progress']}"
    return [
        worker["worker_id"][:8],
        str(worker["pid"]),
        state,
        worker["runs"],
        worker["samplers"],
        worker["dispatched"],
        worker["queued"],
        _share(worker["train_outstanding"], worker["train_credit"]),
        _share(worker["sample_outstanding"], worker["sample_credit"]),
    ]


def _share(outstanding: int, credit: int) -> str:
    """How much of a worker's credit is used."""
    return f"{100 * outstanding / credit:.0f} %" if credit else "-"


def _usage(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {amount:,}" for name, amount in sorted(row["usage"].items())) or "-"


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """An empty line, a head, and rows; numbers stand at the right of their column."""
    if not rows:
        return []
    shown = [list(head), *([_text(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    is_number = [isinstance(value, int) for value in rows[0]]
    lines = [
        GAP.join(
            cell.rjust(width) if at_right else cell.ljust(width)
            for cell, width, at_right in zip(row, widths, is_number, strict=True)
        ).rstrip()
        for row in shown
    ]
    return ["", *lines]


def _text(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
