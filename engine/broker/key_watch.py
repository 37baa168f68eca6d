"""Notices that the file of API keys has changed, at the price of a glance."""

import logging
import os
import sqlite3

from ...client.errors import BadRequest
from .key_book import Secret
from .key_store import KeyStore, connect, read_secrets, unreadable

log = logging.getLogger(__name__)

WAIT_S = 0.1  # for another process that is writing; the next glance tries again


class KeyWatch:
    """The secrets in a file of keys, and whether they are still those.

    A file that becomes unreadable or goes away while it is watched changes nothing: the secrets
    that were read last go on to count, and an error is logged once. One that is unreadable from the
    first lets nobody in.
    """

    def __init__(self, store: KeyStore) -> None:
        """Read the file.

        Raises:
            BadRequest: it is damaged.
        """
        self._path = store.path
        self._file: sqlite3.Connection | None = None
        self._inode = -1  # of the file that was read last, -1 while there was none
        self._version = -1  # of what was read last; SQLite counts changes for each connection
        self._problem = ""
        self.secrets: tuple[Secret, ...] | None = None
        try:
            self._look()
        except (OSError, sqlite3.Error, BadRequest) as error:
            self.close()
            raise unreadable(self._path, error) from error

    def glance(self) -> bool:
        """Whether `secrets` have changed since the last time."""
        try:
            is_new = self._look()
        except (OSError, sqlite3.Error, BadRequest) as error:
            self.close()
            was_open = self.secrets is None
            self.secrets = self.secrets or ()
            if str(error) != self._problem:
                left = f"{len(self.secrets)} secrets read before" if self.secrets else "no key"
                log.error("%s; %s will count meanwhile", unreadable(self._path, error), left)
            self._problem = str(error)
            return was_open
        self._problem = ""
        return is_new

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _look(self) -> bool:
        if self._inode < 0 and not self._path.exists():
            return False
        inode = os.stat(self._path).st_ino
        if self._file is None or self._inode != inode:
            self.close()
            self._file, self._version = connect(self._path, WAIT_S), -1
        version = self._file.execute("PRAGMA data_version").fetchone()[0]
        if self._version == version:
            return False
        before, self.secrets = self.secrets, read_secrets(self._file)
        self._inode, self._version = inode, version
        return self.secrets != before
