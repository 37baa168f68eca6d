"""The file of API keys in a state directory, shared by the command line and running servers.

One SQLite file in WAL mode. It holds hashes of keys, never keys. It comes into being with the first
key and then stays: where it is, a key is needed, even when all keys are revoked. It appears whole,
so an empty or unreadable one is damaged, and that is an error and never an open door.
"""

import os
import secrets
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ...client.errors import BadRequest, NotFound
from ...client.limits import limit
from ..files.store import make_private
from .key_book import LOCAL, OPERATOR, Secret, digest_of

FILE_NAME = "keys.sqlite"
KEY_PREFIX = "tml-"  # of every key: clients of the official SDK insist on it
KEY_BYTES = 32
MAX_KEYS = limit("keys")
MAX_NAME = limit("name_length")
VERSION = 1
WAIT_S = 5.0  # for another process that is writing

_SCHEMA = f"""
CREATE TABLE tenants (id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, created REAL NOT NULL);
CREATE TABLE keys (
    id TEXT PRIMARY KEY, tenant TEXT NOT NULL REFERENCES tenants, name TEXT NOT NULL,
    created REAL NOT NULL, revoked REAL NOT NULL DEFAULT 0
);
CREATE TABLE secrets (
    digest BLOB PRIMARY KEY, key TEXT NOT NULL REFERENCES keys, ends REAL NOT NULL DEFAULT 0
);
INSERT INTO tenants VALUES ('{LOCAL}', '{LOCAL}', 0);
PRAGMA user_version = {VERSION};
"""
_SELECT = """
SELECT keys.id, keys.tenant, tenants.name, keys.name, keys.created, keys.revoked,
       coalesce((SELECT max(ends) FROM secrets WHERE secrets.key = keys.id), 0)
FROM keys JOIN tenants ON tenants.id = keys.tenant
"""


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of a key; times are seconds since 1970, 0 for never."""

    key_id: str
    tenant: str
    tenant_name: str
    name: str
    created: float
    revoked: float
    old_until: float  # until when a secret from before the last rotation still counts


class KeyStore:
    """The keys of one state directory."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME

    def create(self, tenant: str = "", name: str = "") -> tuple[Key, str]:
        """Make a key; returns it with its secret, which is not kept.

        Args:
            tenant: id or name of the tenant it belongs to, or the name of a new one; "" makes a
                tenant for this key alone; "operator" is whoever looks after the server.
            name: for people.

        Raises:
            BadRequest: a name that cannot be, too many keys, or a damaged file.
        """
        for what, text in (("tenant", tenant), ("name", name)):
            if len(text) > MAX_NAME or not text.isprintable():
                raise BadRequest(f"{what} {text[:80]!r} is not up to {MAX_NAME} printable letters")
        self._ensure()
        key_id, secret = secrets.token_hex(4), _new_secret()
        with self._writing() as file:
            active = file.execute("SELECT count(*) FROM keys WHERE revoked = 0").fetchone()[0]
            if active >= MAX_KEYS:
                raise BadRequest(f"{active} keys are active, at most {MAX_KEYS}", "too_large")
            file.execute(
                "INSERT INTO keys (id, tenant, name, created) VALUES (?, ?, ?, ?)",
                (key_id, _tenant_id(file, tenant), name, time.time()),
            )
            file.execute("INSERT INTO secrets VALUES (?, ?, 0)", (digest_of(secret), key_id))
            return _find(file, key_id), secret

    def entries(self) -> list[Key]:
        """All keys, with those that are revoked, the oldest first."""
        if not self.path.exists():
            return []
        with _opened(self.path) as file:
            return [Key(*row) for row in file.execute(f"{_SELECT} ORDER BY keys.created")]

    def rotate(self, key_id: str, grace_s: float = 0.0) -> tuple[Key, str]:
        """Give a key a new secret; what it had before ends after `grace_s` seconds.

        Raises:
            NotFound: there is no such key.
            BadRequest: it is revoked, the time is negative, or the file is damaged.
        """
        if not 0 <= grace_s <= limit("ttl_s"):
            raise BadRequest(f"grace is {grace_s:g} s, not 0 to {limit('ttl_s')}")
        secret, now = _new_secret(), time.time()
        with self._writing() as file:
            _find_active(file, key_id)
            file.execute(
                "DELETE FROM secrets WHERE key = ? AND ends BETWEEN 1 AND ?", (key_id, now)
            )
            if grace_s:
                file.execute(
                    "UPDATE secrets SET ends = ?1 WHERE key = ?2 AND (ends = 0 OR ends > ?1)",
                    (now + grace_s, key_id),
                )
            else:
                file.execute("DELETE FROM secrets WHERE key = ?", (key_id,))
            file.execute("INSERT INTO secrets VALUES (?, ?, 0)", (digest_of(secret), key_id))
            return _find(file, key_id), secret

    def revoke(self, key_id: str) -> Key:
        """End a key.

        Raises:
            NotFound: there is no such key.
            BadRequest: it is revoked, or the file is damaged.
        """
        with self._writing() as file:
            _find_active(file, key_id)
            file.execute("DELETE FROM secrets WHERE key = ?", (key_id,))
            file.execute("UPDATE keys SET revoked = ? WHERE id = ?", (time.time(), key_id))
            return _find(file, key_id)

    def secrets(self) -> tuple[Secret, ...] | None:
        """What counts; None while no key was ever made.

        Raises:
            BadRequest: the file is damaged.
        """
        if not self.path.exists():
            return None
        with _opened(self.path) as file:
            return read_secrets(file)

    def _ensure(self) -> None:
        """Make the file, whole and at once, unless it is there."""
        if self.path.exists():
            return
        folder = self.path.parent
        try:
            make_private(folder)
            draft = folder / f".{FILE_NAME}.{secrets.token_hex(4)}.part"
            os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            try:
                with closing(sqlite3.connect(draft)) as file:
                    file.execute("PRAGMA journal_mode = WAL")
                    file.executescript(_SCHEMA)
                os.link(draft, self.path)
            except FileExistsError:  # another process was first
                pass
            finally:
                draft.unlink()
        except (OSError, sqlite3.Error) as error:
            raise BadRequest(f"{folder} cannot hold keys: {error}") from error

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction; nobody else writes meanwhile."""
        if not self.path.exists():
            raise NotFound(f"no keys in {self.path.parent}")
        with _opened(self.path) as file:
            file.execute("BEGIN IMMEDIATE")
            try:
                yield file
            except BaseException:
                file.execute("ROLLBACK")
                raise
            file.execute("COMMIT")


def connect(path: Path, wait_s: float = WAIT_S) -> sqlite3.Connection:
    """Open a file of keys that is there; any thread may use it, one at a time."""
    uri = f"{path.absolute().as_uri()}?mode=rw"
    return sqlite3.connect(
        uri, uri=True, timeout=wait_s, isolation_level=None, check_same_thread=False
    )


def read_secrets(file: sqlite3.Connection) -> tuple[Secret, ...]:
    """The secrets in an open file, once it is known to be whole.

    Raises:
        BadRequest: it is damaged.
        sqlite3.Error: it cannot be read.
    """
    version = file.execute("PRAGMA user_version").fetchone()[0]
    if version != VERSION:
        raise BadRequest(f"it has version {version}, not {VERSION}")
    problem = file.execute("PRAGMA quick_check(1)").fetchone()[0]
    if problem != "ok":
        raise BadRequest(str(problem))
    rows = file.execute(
        "SELECT digest, keys.id, tenant, ends FROM secrets JOIN keys ON keys.id = secrets.key "
        "WHERE revoked = 0"
    )
    return tuple(Secret(*row) for row in rows)


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    """The file, checked; raises BadRequest when it is damaged."""
    try:
        with closing(connect(path)) as file:
            try:
                read_secrets(file)
            except BadRequest as error:
                raise sqlite3.DatabaseError(str(error)) from None
            yield file
    except sqlite3.Error as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> BadRequest:
    """The error of a file of keys that cannot be used."""
    return BadRequest(
        f"the file of API keys {path} is damaged or cannot be read ({error}); put a good copy in its "
        "place, or move it away and make new keys"
    )


def _new_secret() -> str:
    return KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)


def _tenant_id(file: sqlite3.Connection, tenant: str) -> str:
    """The id of a tenant by id or name; a new one when there is none."""
    row = file.execute(
        "SELECT id FROM tenants WHERE id = ?1 OR name = ?1 ORDER BY id = ?1 DESC", (tenant,)
    ).fetchone()
    if row is not None:
        return str(row[0])
    new = OPERATOR if tenant == OPERATOR else f"t-{secrets.token_hex(6)}"
    file.execute("INSERT INTO tenants VALUES (?, ?, ?)", (new, tenant or new, time.time()))
    return new


def _find(file: sqlite3.Connection, key_id: str) -> Key:
    row = file.execute(f"{_SELECT} WHERE keys.id = ?", (key_id,)).fetchone()
    if row is None:
        if key_id.startswith(KEY_PREFIX):  # it is not to be shown
            raise NotFound(
                "that is a key; what is asked for is its id, as `weft key list` shows it"
            )
        raise NotFound(f"no key has the id {key_id[:80]!r}; `weft key list` shows them")
    return Key(*row)


def _find_active(file: sqlite3.Connection, key_id: str) -> Key:
    key = _find(file, key_id)
    if key.revoked:
        raise BadRequest(f"key {key_id} is revoked already")
    return key
