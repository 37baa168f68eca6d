"""What a server keeps and remembers, with the names and defaults of the official SDK."""

from dataclasses import dataclass, field
from typing import Literal

CheckpointType = Literal["training", "sampler", "external"]


@dataclass(frozen=True, kw_only=True)
class Cursor:
    """Where a page lies in its list."""

    offset: int
    limit: int
    total_count: int


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    checkpoint_id: str  # "weights/<name>", "sampler_weights/<name>" or "external_weights/<name>"
    checkpoint_type: CheckpointType
    time: float  # seconds since 1970
    tinker_path: str  # weft://<run_id>/<checkpoint_id>; the SDK's name for it
    size_bytes: int | None = None
    user_metadata: dict[str, str] = field(default_factory=dict[str, str])
    public: bool = False  # everybody may read it who knows its path
    expires_at: float | None = None  # seconds since 1970; None: never
    has_optimizer: bool = False
    omitted: str = ""  # "user_metadata" where that was too long for a list


@dataclass(frozen=True, kw_only=True)
class CheckpointsListResponse:
    checkpoints: list[Checkpoint]
    cursor: Cursor | None = None  # None: these are all


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """A run, or what its checkpoints tell of it once nothing else is left."""

    training_run_id: str
    base_model: str
    model_owner: str = "local"  # the tenant
    is_lora: bool = True
    corrupted: bool = False  # its worker is gone, and what was not saved with it
    lora_rank: int | None = None
    last_request_time: float | None = None  # seconds since 1970
    last_checkpoint: Checkpoint | None = None  # the newest training state
    last_sampler_checkpoint: Checkpoint | None = None  # the newest weights for a sampler
    user_metadata: dict[str, str] = field(default_factory=dict[str, str])
    forked_from: str | None = None  # the id of the run that it began as a copy of
    omitted: str = ""  # "user_metadata" where that was too long for a list


@dataclass(frozen=True, kw_only=True)
class TrainingRunsResponse:
    training_runs: list[TrainingRun]
    cursor: Cursor


@dataclass(frozen=True, kw_only=True)
class WeightsInfoResponse:
    """What a checkpoint was trained on, and how."""

    base_model: str
    is_lora: bool = True
    lora_rank: int | None = None
    lora_alpha: float | None = None
    train_unembed: bool | None = None
    train_mlp: bool | None = None
    train_attn: bool | None = None
    has_optimizer: bool = False


@dataclass(frozen=True, kw_only=True)
class ListSessionsResponse:
    sessions: list[str]  # ids


@dataclass(frozen=True, kw_only=True)
class GetSessionResponse:
    training_run_ids: list[str]  # latest first, like the samplers
    sampler_ids: list[str]
    user_metadata: dict[str, str] = field(default_factory=dict[str, str])
    display_name: str | None = None
    tags: list[str] = field(default_factory=list[str])
    opened: float = 0.0  # seconds since 1970
    is_ended: bool = False
    ending: str = ""  # why, as the client said that ended it
    omitted: str = ""  # "user_metadata" where that was too long for an answer


@dataclass(frozen=True, kw_only=True)
class GetSamplerResponse:
    sampler_id: str
    base_model: str
    model_path: str | None = None  # None: the base model, or weights that were never a file
