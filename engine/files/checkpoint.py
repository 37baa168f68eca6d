"""What is known of a saved state: one record, kept in the metadata of its file."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ...client.messages import SaveForSampler, SaveState
from ...client.paths import CheckpointPath, parse_path

METADATA_KEY = "weft"


def saved_path(header: SaveState | SaveForSampler) -> str:
    """The path that a command saves under, "" when it keeps no file."""
    if isinstance(header, SaveState):
        kind = "weights"
    else:
        kind = "external_weights" if header.is_external else "sampler_weights"
    return str(CheckpointPath(header.run_id, kind, header.name)) if header.name else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A saved state of a run: with it a run can start or go on, or a sampler be opened."""

    path: str  # "weft://<run_id>/<kind>/<name>"
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
    has_optimizer: bool = True
    expires: float = 0.0  # seconds since the epoch, 0 never
    unembed_site: str = ""  # name of the unembedding's site when it is trained
    public: bool = False  # everybody may read it who knows its path

    def is_readable_by(self, tenant: str) -> bool:
        """Whether a tenant may read it: its owner may, and of a public one everybody."""
        return self.public or self.tenant == tenant

    def fields(self) -> dict[str, Any]:
        """What its owner is told."""
        parts = parse_path(self.path)
        told = asdict(self)
        del told["tenant"], told["unembed_site"]
        told["time"] = told.pop("created")
        return {**told, "run_id": parts.run_id, "kind": parts.kind, "name": parts.name}

    def to_metadata(self) -> dict[str, str]:
        """The record as the metadata of a safetensors file."""
        return {METADATA_KEY: json.dumps(asdict(self))}

    @classmethod
    def from_metadata(
        cls, metadata: Mapping[str, str], *, path: str, size_bytes: int
    ) -> "Checkpoint":
        """Read what `to_metadata` wrote; path and size are those of the file as it lies there.

        Raises:
            ValueError: it is no such record.
        """
        try:
            fields = json.loads(metadata.get(METADATA_KEY, "null"))
            if not isinstance(fields, dict):
                raise ValueError("not a checkpoint of weft")
            return cls(**{**fields, "path": path, "size_bytes": size_bytes})
        except TypeError as error:
            raise ValueError(f"not a checkpoint of weft: {error}") from None
