"""Shapes: what the broker's books say, as the SDK's rest client reads it."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from weft.engine.gateway import shapes

SESSION = "0123456789abcdef" * 2
RUN_ID = f"{SESSION}:train:0"
CHECKPOINT: dict[str, Any] = {
    "path": f"weft://{RUN_ID}/weights/first",
    "run_id": RUN_ID,
    "kind": "weights",
    "name": "first",
    "time": 1_750_000_000.25,
    "size_bytes": 123,
    "public": False,
    "user_metadata": {"a": "b"},
    "expires": 0,
    "has_optimizer": True,
    "base_model": "weft/tiny",
    "rank": 8,
    "alpha": 32.0,
    "train_attn": True,
    "train_mlp": False,
    "train_unembed": True,
    "step": 3,
}
RUN: dict[str, Any] = {
    "run_id": RUN_ID,
    "session_id": SESSION,
    "owner": "local",
    "base_model": "weft/tiny",
    "rank": 8,
    "is_lost": False,
    "last_request_time": 1_750_000_000.0,
    "user_metadata": {},
    "last_checkpoint": None,
    "last_sampler_checkpoint": None,
}


def test_times_name_their_zone() -> None:
    assert shapes.time_of(1_750_000_000.25) == "2025-06-15T15:06:40.250000+00:00"
    assert datetime.fromisoformat(shapes.time_of(0)) == datetime(1970, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("weights", "training"),
        ("sampler_weights", "sampler"),
        ("external_weights", "external"),
    ],
)
def test_a_checkpoint_is_told_by_its_kind(kind: str, told: str) -> None:
    fields = {**CHECKPOINT, "kind": kind, "path": f"weft://{RUN_ID}/{kind}/first"}
    assert shapes.checkpoint(fields) == {
        "checkpoint_id": f"{kind}/first",
        "checkpoint_type": told,
        "time": "2025-06-15T15:06:40.250000+00:00",
        "tinker_path": f"tinker://{RUN_ID}/{kind}/first",
        "size_bytes": 123,
        "public": False,
        "user_metadata": {"a": "b"},
    }


def test_a_checkpoint_that_expires_says_when() -> None:
    told = shapes.checkpoint({**CHECKPOINT, "expires": 1_750_000_001.0})
    assert told["expires_at"] == "2025-06-15T15:06:41+00:00"


def test_a_run_is_told_with_its_latest_checkpoints() -> None:
    assert shapes.training_run({**RUN, "last_checkpoint": CHECKPOINT, "is_lost": True}) == {
        "training_run_id": RUN_ID,
        "base_model": "weft/tiny",
        "model_owner": "local",
        "is_lora": True,
        "corrupted": True,
        "lora_rank": 8,
        "last_request_time": "2025-06-15T15:06:40+00:00",
        "user_metadata": {},
        "last_checkpoint": shapes.checkpoint(CHECKPOINT),
    }


def test_weights_are_told_by_what_goes_on_from_them() -> None:
    assert shapes.weights_info(CHECKPOINT) == {
        "base_model": "weft/tiny",
        "optimizer_config": {"type": "adamw"},
        "is_lora": True,
        "lora_rank": 8,
        "train_unembed": True,
        "train_mlp": False,
        "train_attn": True,
    }


@pytest.mark.parametrize(("name", "told"), [("", {}), ("mine", {"display_name": "mine"})])
def test_a_session_is_told_with_its_ids(name: str, told: dict[str, str]) -> None:
    fields = {"run_ids": [RUN_ID], "sampler_ids": [], "user_metadata": {}, "display_name": name}
    assert shapes.session(fields) == {
        "training_run_ids": [RUN_ID],
        "sampler_ids": [],
        "user_metadata": {},
        **told,
    }


@pytest.mark.parametrize(
    ("path", "told"),
    [("", {}), (CHECKPOINT["path"], {"model_path": f"tinker://{RUN_ID}/weights/first"})],
)
def test_a_sampler_is_told_with_its_weights(path: str, told: dict[str, str]) -> None:
    fields = {"sampler_id": "s", "base_model": "weft/tiny", "model_path": path, "run_id": ""}
    assert shapes.sampler(fields) == {"sampler_id": "s", "base_model": "weft/tiny", **told}


def test_metrics_stay_json_whatever_they_are() -> None:
    values = {"a:mean": 1.5, "b": float("nan"), "c": float("inf"), "d": float("-inf")}
    told = shapes.metrics(values)
    assert told == {"a:mean": 1.5, "b": "nan", "c": "inf", "d": "-inf"}
    assert json.loads(json.dumps(told, allow_nan=False)) == told
