"""The seam between the broker and what makes its decisions durable.

The core numbers its records and says which answer waits for which number; a journal writes them in
order and reports how far it has come. `NullJournal` keeps nothing and is never behind.
"""

from collections.abc import Callable, Sequence, Sized
from typing import NamedTuple, Protocol


class Accepted(NamedTuple):
    """All parts of a command have arrived."""

    run_id: str
    seq: int
    parts: Sequence[Sequence[Sized]]  # per part, header first


class Outcome(NamedTuple):
    """A command is done, or failed with this code; either way its number is used up."""

    run_id: str
    seq: int
    code: str  # "" when it is in effect


class Voided(NamedTuple):
    """The numbers first..last of a run will never be sent."""

    run_id: str
    first_seq: int
    last_seq: int


class Placed(NamedTuple):
    """From now on this worker holds the run, under this epoch."""

    run_id: str
    worker_id: str
    epoch: int


Record = Accepted | Outcome | Voided | Placed


class Journal(Protocol):
    """Writes records in the order of their numbers. Called from the broker's thread only."""

    def start(self, wake: Callable[[], None]) -> None:
        """Begin; `wake` may be called from any thread when `persisted` has grown."""

    def append(self, number: int, record: Record) -> None:
        """Take a record; must not block."""

    def persisted(self) -> int:
        """All records up to this number are durable; 0 for none."""
        ...

    def stop(self) -> None:
        """Write what was taken, and end."""


class NullJournal:
    """Keeps nothing: whatever was appended counts as durable at once."""

    def __init__(self) -> None:
        self._number = 0

    def start(self, wake: Callable[[], None]) -> None:
        """Nothing to begin."""

    def append(self, number: int, record: Record) -> None:
        """Forget the record."""
        self._number = number

    def persisted(self) -> int:
        """The last number appended."""
        return self._number

    def stop(self) -> None:
        """Nothing to end."""
