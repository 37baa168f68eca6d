"""The broker's books in the types of the official SDK."""

from collections.abc import Mapping, Sequence
from typing import Any

from .paths import parse_path
from .rest_types import (
    Checkpoint,
    CheckpointType,
    Cursor,
    GetSamplerResponse,
    GetSessionResponse,
    TrainingRun,
    WeightsInfoResponse,
)

_TYPES: dict[str, CheckpointType] = {
    "weights": "training",
    "sampler_weights": "sampler",
    "external_weights": "external",
}

Fields = Mapping[str, Any]


def read_cursor(pages: Sequence[Fields], offset: int, limit: int) -> Cursor:
    """Where the pages of a list lie in it."""
    return Cursor(offset=offset, limit=limit, total_count=pages[-1]["total"])


def read_run(fields: Fields) -> TrainingRun:
    """A run, as the query `run` tells it."""
    return TrainingRun(
        training_run_id=fields["run_id"],
        base_model=fields["base_model"],
        model_owner=fields["owner"],
        lora_rank=fields["rank"],
        corrupted=fields["is_lost"],
        last_request_time=fields["last_request_time"] or None,
        last_checkpoint=_last(fields["last_checkpoint"]),
        last_sampler_checkpoint=_last(fields["last_sampler_checkpoint"]),
        user_metadata=fields["user_metadata"],
        forked_from=fields["forked_from"] or None,
        omitted=fields.get("omitted", ""),
    )


def read_checkpoint(fields: Fields) -> Checkpoint:
    """A checkpoint, as the query `checkpoints` tells it."""
    path = parse_path(fields["path"])
    return Checkpoint(
        checkpoint_id=f"{path.kind}/{path.name}",
        checkpoint_type=_TYPES[path.kind],
        time=fields["time"],
        tinker_path=fields["path"],
        size_bytes=fields["size_bytes"],
        user_metadata=fields["user_metadata"],
        public=fields["public"],
        expires_at=fields["expires"] or None,
        has_optimizer=fields["has_optimizer"],
        omitted=fields.get("omitted", ""),
    )


def read_weights_info(fields: Fields) -> WeightsInfoResponse:
    """What the query `checkpoints` says that a checkpoint holds."""
    return WeightsInfoResponse(
        base_model=fields["base_model"],
        lora_rank=fields["rank"],
        lora_alpha=fields["alpha"],
        train_unembed=fields["train_unembed"],
        train_mlp=fields["train_mlp"],
        train_attn=fields["train_attn"],
        has_optimizer=fields["has_optimizer"],
    )


def read_session(pages: Sequence[Fields]) -> GetSessionResponse:
    """A session, as the pages of the query `session` tell it."""
    return GetSessionResponse(
        training_run_ids=[run_id for page in pages for run_id in page["run_ids"]],
        sampler_ids=[sampler_id for page in pages for sampler_id in page["sampler_ids"]],
        user_metadata=pages[0]["user_metadata"],
        display_name=pages[0]["display_name"] or None,
        tags=pages[0]["tags"],
        opened=pages[0]["opened"],
        is_ended=pages[0]["is_ended"],
        ending=pages[0]["ending"],
        omitted=pages[0].get("omitted", ""),
    )


def read_sampler(fields: Fields) -> GetSamplerResponse:
    """A sampler, as the query `sampler` tells it."""
    return GetSamplerResponse(
        sampler_id=fields["sampler_id"],
        base_model=fields["base_model"],
        model_path=fields["model_path"] or None,
    )


def _last(fields: Fields | None) -> Checkpoint | None:
    return None if fields is None else read_checkpoint(fields)
