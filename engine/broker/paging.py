"""Lists in answers: pages that fit into a header."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgpack

from ...client.messages import Query

T = TypeVar("T")

PAGE_BYTES = 40_000  # of one list, below the limit of a header
ENTRY_BYTES = 8_000  # beyond it an entry of a list is told without its metadata


def page(
    name: str, things: Sequence[T], describe: Callable[[T], dict[str, Any]], query: Query
) -> dict[str, Any]:
    """The entries of a list that a query asks for, as many as fit; among several, trimmed ones."""
    most = ENTRY_BYTES if len(things) > 1 else PAGE_BYTES
    entries, rest = cut(things, lambda thing: trimmed(describe(thing), most), query)
    return {name: entries, **rest}


def cut(
    things: Sequence[T], describe: Callable[[T], Any], query: Query, room: int = PAGE_BYTES
) -> tuple[list[Any], dict[str, int]]:
    """What is said of the things from a query's offset on, and where the list goes on, or -1.

    At least one thing is told, so that every page takes a reader further.
    """
    last = min(query.offset + query.limit, len(things)) if query.limit else len(things)
    entries: list[Any] = []
    for index in range(query.offset, last):
        entry = describe(things[index])
        room -= len(msgpack.packb(entry))
        if room < 0 and entries:
            break
        entries.append(entry)
    end = query.offset + len(entries)
    return entries, {"next": end if end < len(things) else -1, "total": len(things)}


def trimmed(entry: dict[str, Any], most: int) -> dict[str, Any]:
    """An entry without its metadata when it is too long with it; then it says so in "omitted"."""
    if not entry["user_metadata"] or len(msgpack.packb(entry)) <= most:
        return entry
    return {**entry, "user_metadata": {}, "omitted": "user_metadata"}
