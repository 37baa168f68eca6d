"""The commands `weft key create|list|rotate|revoke`: what they take and what they print."""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .broker.key_store import Key, KeyStore

DEFAULT_STATE = "~/.local/state/weft"
_SHOWN_ONCE = "Keep the key: it is shown this once, and only a hash of it is stored."

Commands = argparse._SubParsersAction


def state_folder(arguments: argparse.Namespace) -> Path:
    """Where a server keeps its state, as --state says."""
    return Path(arguments.state or DEFAULT_STATE).expanduser()


def add_state_option(parser: argparse.ArgumentParser) -> None:
    """The option --state, the same for whoever reads or writes there."""
    parser.add_argument(
        "--state",
        metavar="DIR",
        default="",
        help=f"where saved states and API keys are ({DEFAULT_STATE})",
    )


def add_key_commands(
    commands: "Commands[argparse.ArgumentParser]",
    run: Callable[[argparse.Namespace], int],
) -> None:
    """Add `key` and what belongs to it to a parser; `run` is to print `answer`."""
    key = commands.add_parser("key", help="make, list, rotate and revoke API keys")
    actions = key.add_subparsers(required=True, metavar="ACTION")

    create = actions.add_parser("create", help="make a key, and show it once")
    create.add_argument(
        "--tenant",
        default="",
        metavar="NAME",
        help="whose key: a tenant's id or name, or the name of a new one; a new tenant unless given; "
        "the tenant operator may ask for metrics and status, and nothing else",
    )
    create.add_argument("--name", default="", metavar="TEXT", help="what the key is for")
    create.set_defaults(answer=_create)

    listing = actions.add_parser("list", help="show all keys, without their secrets")
    listing.set_defaults(answer=_list)

    rotate = actions.add_parser("rotate", help="replace a key's secret, and show the new one once")
    rotate.add_argument("id", metavar="ID", help="of the key, as `weft key list` shows it")
    rotate.add_argument(
        "--grace",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="how long the old secret still counts; it ends at once unless given",
    )
    rotate.set_defaults(answer=_rotate)

    revoke = actions.add_parser("revoke", help="end a key; what its tenant owns stays")
    revoke.add_argument("id", metavar="ID", help="of the key, as `weft key list` shows it")
    revoke.set_defaults(answer=_revoke)

    for action in (create, listing, rotate, revoke):
        add_state_option(action)
        action.add_argument("--json", action="store_true", help="print one JSON object")
        action.set_defaults(run=run)


def answer(arguments: argparse.Namespace) -> str:
    """Do what one of the commands asks for; returns what it prints.

    Raises:
        WeftError: it cannot be done, in a sentence.
    """
    fields, lines = arguments.answer(KeyStore(state_folder(arguments)), arguments)
    return json.dumps(fields) if arguments.json else "\n".join(lines)


Answer = tuple[dict[str, Any], list[str]]


def _create(store: KeyStore, arguments: argparse.Namespace) -> Answer:
    key, secret = store.create(arguments.tenant, arguments.name)
    return _shown_once(key, secret), [*_card(key, secret), _SHOWN_ONCE]


def _rotate(store: KeyStore, arguments: argparse.Namespace) -> Answer:
    key, secret = store.rotate(arguments.id, arguments.grace)
    end = f"until {_shown(key.old_until)}" if key.old_until else "no longer"
    return _shown_once(key, secret), [
        *_card(key, secret),
        f"{_SHOWN_ONCE} The old one counts {end}.",
    ]


def _revoke(store: KeyStore, arguments: argparse.Namespace) -> Answer:
    key = store.revoke(arguments.id)
    lines = [f"key {key.key_id} of {_tenant(key)} is revoked; what the tenant owns stays"]
    if all(other.revoked for other in store.entries()):
        lines.append("no key is active: nobody can connect until `weft key create` makes one")
    return asdict(key), lines


def _list(store: KeyStore, arguments: argparse.Namespace) -> Answer:
    keys = store.entries()
    if not keys:
        where = f"no keys in {store.path.parent}"
        if not store.path.exists():
            where += ": whoever reaches the server is the tenant local"
        return {"keys": []}, [where]
    rows = [("ID", "TENANT", "TENANT ID", "NAME", "CREATED", "STATE")]
    for key in keys:
        created = _shown(key.created)
        rows.append((key.key_id, key.tenant_name, key.tenant, key.name, created, _state(key)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return {"keys": [asdict(key) for key in keys]}, lines


def _shown_once(key: Key, secret: str) -> dict[str, Any]:
    return {"key": secret, **asdict(key)}


def _card(key: Key, secret: str) -> list[str]:
    lines = [f"key     {secret}", f"id      {key.key_id}", f"tenant  {_tenant(key)}"]
    return lines + [f"name    {key.name}"] * bool(key.name)


def _tenant(key: Key) -> str:
    return key.tenant if key.tenant_name == key.tenant else f"{key.tenant_name} ({key.tenant})"


def _state(key: Key) -> str:
    if key.revoked:
        return f"revoked {_shown(key.revoked)}"
    if key.old_until > time.time():
        return f"active, the old secret until {_shown(key.old_until)}"
    return "active"


def _shown(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
