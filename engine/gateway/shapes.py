"""What the SDK's rest client is told, made of what the broker's books say.

Paths become tinker:// paths, times ISO 8601 in UTC. Fields of the broker that the SDK does not know
are left out, as are those without a value.
"""

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from .names import from_weft

Fields = Mapping[str, Any]
Told = dict[str, Any]

_CHECKPOINT_TYPES = {
    "weights": "training",
    "sampler_weights": "sampler",
    "external_weights": "external",
}


def time_of(seconds: float) -> str:
    """A time, seconds since 1970, as the SDK reads it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def metrics(values: Mapping[str, float]) -> Told:
    """Metrics as JSON, which has no NaN or infinity: the SDK reads those from strings."""
    return {name: value if math.isfinite(value) else str(value) for name, value in values.items()}


def training_run(run: Fields) -> Told:
    """Of a run."""
    told = {
        "training_run_id": run["run_id"],
        "base_model": run["base_model"],
        "model_owner": run["owner"],
        "is_lora": True,
        "corrupted": run["is_lost"],
        "lora_rank": run["rank"],
        "last_request_time": time_of(run["last_request_time"]),
        "user_metadata": run["user_metadata"],
    }
    for name in ("last_checkpoint", "last_sampler_checkpoint"):
        if run.get(name) is not None:
            told[name] = checkpoint(run[name])
    return told


def checkpoint(fields: Fields) -> Told:
    """Of a checkpoint of any kind."""
    told = {
        "checkpoint_id": f"{fields['kind']}/{fields['name']}",
        "checkpoint_type": _CHECKPOINT_TYPES[fields["kind"]],
        "time": time_of(fields["time"]),
        "tinker_path": from_weft(fields["path"]),
        "size_bytes": fields["size_bytes"],
        "public": fields["public"],
        "user_metadata": fields["user_metadata"],
    }
    if fields["expires"]:
        told["expires_at"] = time_of(fields["expires"])
    return told


def weights_info(fields: Fields) -> Told:
    """Of a checkpoint: what somebody needs to know who wants to go on from it."""
    return {
        "base_model": fields["base_model"],
        "optimizer_config": {"type": "adamw"},
        "is_lora": True,
        "lora_rank": fields["rank"],
        "train_unembed": fields["train_unembed"],
        "train_mlp": fields["train_mlp"],
        "train_attn": fields["train_attn"],
    }


def session(fields: Fields) -> Told:
    """Of a session, with the ids of all that it opened."""
    told = {
        "training_run_ids": fields["run_ids"],
        "sampler_ids": fields["sampler_ids"],
        "user_metadata": fields["user_metadata"],
    }
    return {**told, "display_name": fields["display_name"]} if fields["display_name"] else told


def sampler(fields: Fields) -> Told:
    """Of a sampler."""
    told = {"sampler_id": fields["sampler_id"], "base_model": fields["base_model"]}
    return {**told, "model_path": from_weft(fields["model_path"])} if fields["model_path"] else told
