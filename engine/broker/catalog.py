"""The checkpoints that exist, by path and owner, and when they expire."""

from collections import Counter
from collections.abc import Collection, Sequence
from heapq import heapify, heappop, heappush

from ...client.errors import NotFound
from ...client.paths import parse_path
from ..files.checkpoint import Checkpoint
from .shelf import Shelf

OUTDATED = 64  # expiries that may be out of date beside as many as there are checkpoints


class Catalog:
    """Checkpoints of all tenants."""

    def __init__(self) -> None:
        self._by_path: dict[str, Checkpoint] = {}
        self._shelves: dict[str, Shelf] = {}  # of the tenants that have any
        self._owners: dict[str, Counter[str]] = {}  # of a session's id: tenants, how many they have
        self._expiries: list[tuple[float, str]] = []  # a heap; entries may be out of date
        self.locked: set[str] = set()  # paths whose file the store is changing, or will write

    def add(self, checkpoint: Checkpoint) -> None:
        """Enter a checkpoint, in place of an older one of the same path."""
        if checkpoint.path in self._by_path:
            self.remove(checkpoint.path)
        self._by_path[checkpoint.path] = checkpoint
        run_id = parse_path(checkpoint.path).run_id
        self._shelves.setdefault(checkpoint.tenant, Shelf()).add(run_id, checkpoint)
        self._owners.setdefault(_session_of(run_id), Counter())[checkpoint.tenant] += 1
        if checkpoint.expires:
            heappush(self._expiries, (checkpoint.expires, checkpoint.path))
        if self.num_expiries > 2 * len(self._by_path) + OUTDATED:
            self._expiries = [(c.expires, path) for path, c in self._by_path.items() if c.expires]
            heapify(self._expiries)

    def remove(self, path: str) -> None:
        """Strike a checkpoint off."""
        checkpoint = self._by_path.pop(path)
        run_id = parse_path(path).run_id
        shelf = self._shelves[checkpoint.tenant]
        shelf.remove(run_id, checkpoint)
        if not shelf.checkpoints:
            del self._shelves[checkpoint.tenant]
        owners = self._owners[_session_of(run_id)]
        owners[checkpoint.tenant] -= 1
        if not owners[checkpoint.tenant]:
            del owners[checkpoint.tenant]
        if not owners:
            del self._owners[_session_of(run_id)]

    def take_expired(self, now: float) -> list[Checkpoint]:
        """The checkpoints whose time has come, seconds since the epoch; each is told once."""
        found = {}
        while self._expiries and self._expiries[0][0] <= now:
            expires, path = heappop(self._expiries)
            checkpoint = self._by_path.get(path)
            if checkpoint is not None and checkpoint.expires == expires:
                found[path] = checkpoint
        return list(found.values())

    @property
    def num_expiries(self) -> int:
        """How many times of expiry are remembered, with those that are out of date."""
        return len(self._expiries)

    def count(self, tenant: str) -> int:
        """How many a tenant has."""
        return len(self._shelf(tenant).checkpoints)

    def __len__(self) -> int:
        return len(self._by_path)

    def __contains__(self, path: str) -> bool:
        return path in self._by_path

    def find(self, path: str, tenant: str) -> Checkpoint:
        """Look up a checkpoint that a tenant may read: one of its own, or a public one.

        Raises:
            BadRequest: not a path.
            NotFound: there is none, or it is another tenant's and not public.
        """
        parse_path(path)
        checkpoint = self._by_path.get(path)
        if checkpoint is None or not checkpoint.is_readable_by(tenant):
            raise NotFound(f"no checkpoint {path}")
        return checkpoint

    def find_own(self, path: str, tenant: str) -> Checkpoint:
        """Look up a checkpoint that a tenant may change; raises as `find`."""
        checkpoint = self.find(path, tenant)
        if checkpoint.tenant != tenant:
            raise NotFound(f"no checkpoint {path}")
        return checkpoint

    def created(self, path: str) -> float | None:
        """When a checkpoint was made, None when there is none."""
        checkpoint = self._by_path.get(path)
        return None if checkpoint is None else checkpoint.created

    def owners(self, session_id: str) -> Collection[str]:
        """The tenants that have checkpoints of the runs of a session."""
        return self._owners.get(session_id, {}).keys()

    def runs(self, tenant: str) -> Collection[str]:
        """The ids of the runs that a tenant has checkpoints of."""
        return self._shelf(tenant).by_run.keys()

    def runs_by_time(self, tenant: str) -> Sequence[tuple[float, str]]:
        """The time of the newest checkpoint of each of these runs and its id, oldest first."""
        return self._shelf(tenant).runs

    def of(self, tenant: str, run_id: str = "") -> list[Checkpoint]:
        """A tenant's checkpoints, of one run or of all, newest first."""
        shelf = self._shelf(tenant)
        return (shelf.by_run.get(run_id, []) if run_id else shelf.checkpoints)[::-1]

    def _shelf(self, tenant: str) -> Shelf:
        return self._shelves.get(tenant) or Shelf()


def _session_of(run_id: str) -> str:
    return run_id.partition(":")[0]
