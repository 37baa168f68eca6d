"""The checkpoints that exist, by path and owner."""

from dataclasses import asdict, dataclass, field
from typing import Any

from ...client.errors import NotFound
from ...client.paths import parse_path


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A saved state of a run: with it a run can start or go on, or a sampler be opened."""

    path: str  # "weft://<run_id>/weights/<name>" or ".../sampler_weights/<name>"
    tenant: str
    base_model: str
    rank: int
    alpha: float
    train_attn: bool
    train_mlp: bool
    train_unembed: bool
    step: int
    size_bytes: int
    created: float  # seconds since the epoch
    user_metadata: dict[str, str] = field(default_factory=dict)

    def fields(self) -> dict[str, Any]:
        """What its owner is told."""
        parts = parse_path(self.path)
        told = asdict(self)
        del told["tenant"]
        told["time"] = told.pop("created")
        return {**told, "run_id": parts.run_id, "kind": parts.kind, "name": parts.name}


class Catalog:
    """Checkpoints of all tenants."""

    def __init__(self) -> None:
        self._by_path: dict[str, Checkpoint] = {}
        self._counts: dict[str, int] = {}

    def add(self, checkpoint: Checkpoint) -> None:
        """Enter a checkpoint, in place of an older one of the same path."""
        if checkpoint.path not in self._by_path:
            self._counts[checkpoint.tenant] = self.count(checkpoint.tenant) + 1
        self._by_path[checkpoint.path] = checkpoint

    def count(self, tenant: str) -> int:
        """How many a tenant has."""
        return self._counts.get(tenant, 0)

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
            for path, checkpoint in self._by_path.items()
            if checkpoint.tenant == tenant and path.startswith(prefix)
        ]
        return sorted(found, key=lambda checkpoint: checkpoint.created, reverse=True)
