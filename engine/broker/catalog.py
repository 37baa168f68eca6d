"""The checkpoints that exist, by path and owner, and when they expire."""

from heapq import heapify, heappop, heappush

from ...client.errors import NotFound
from ...client.paths import parse_path
from ..files.checkpoint import Checkpoint

OUTDATED = 64  # expiries that may be out of date beside as many as there are checkpoints


class Catalog:
    """Checkpoints of all tenants."""

    def __init__(self) -> None:
        self._by_path: dict[str, Checkpoint] = {}
        self._by_tenant: dict[str, dict[str, Checkpoint]] = {}
        self._expiries: list[tuple[float, str]] = []  # a heap; entries may be out of date
        self.locked: set[str] = set()  # paths whose file the store is changing, or will write

    def add(self, checkpoint: Checkpoint) -> None:
        """Enter a checkpoint, in place of an older one of the same path."""
        self._by_path[checkpoint.path] = checkpoint
        self._by_tenant.setdefault(checkpoint.tenant, {})[checkpoint.path] = checkpoint
        if checkpoint.expires:
            heappush(self._expiries, (checkpoint.expires, checkpoint.path))
        if self.num_expiries > 2 * len(self._by_path) + OUTDATED:
            self._expiries = [(c.expires, path) for path, c in self._by_path.items() if c.expires]
            heapify(self._expiries)

    def remove(self, path: str) -> None:
        """Strike a checkpoint off."""
        checkpoint = self._by_path.pop(path)
        own = self._by_tenant[checkpoint.tenant]
        del own[path]
        if not own:
            del self._by_tenant[checkpoint.tenant]

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
        return len(self._by_tenant.get(tenant, ()))

    def __len__(self) -> int:
        return len(self._by_path)

    def __contains__(self, path: str) -> bool:
        return path in self._by_path

    def find(self, path: str, tenant: str, kind: str | None = None) -> Checkpoint:
        """Look up a tenant's checkpoint.

        Raises:
            BadRequest: not a path, or of another kind than `kind`.
            NotFound: there is none, or it is another tenant's.
        """
        parts = parse_path(path)
        checkpoint = self._by_path.get(path)
        if checkpoint is None or checkpoint.tenant != tenant:
            raise NotFound(f"no checkpoint {path}")
        if kind is not None and parts.kind != kind:
            raise NotFound(f"{path} is not of kind {kind}")
        return checkpoint

    def of(self, tenant: str, run_id: str = "") -> list[Checkpoint]:
        """A tenant's checkpoints, of one run or of all, newest first."""
        prefix = f"weft://{run_id}/" if run_id else "weft://"
        found = [
            checkpoint
            for path, checkpoint in self._by_tenant.get(tenant, {}).items()
            if path.startswith(prefix)
        ]
        return sorted(found, key=lambda checkpoint: checkpoint.created, reverse=True)
