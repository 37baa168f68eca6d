"""Reading what the server keeps: runs and checkpoints."""

from collections.abc import Mapping
from typing import Any

from .futures import APIFuture
from .paths import parse_path
from .session import Session
from .types import (
    Checkpoint,
    CheckpointsListResponse,
    TrainingRun,
    TrainingRunsResponse,
)


class RestClient:
    """Lists and describes the caller's runs and checkpoints. Made by `ServiceClient`."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def list_training_runs(
        self, limit: int = 20, offset: int = 0
    ) -> APIFuture[TrainingRunsResponse]:
        """The runs, latest request first."""
        return self._session.query_all("runs").map(
            lambda runs: TrainingRunsResponse(
                training_runs=sorted(
                    map(_run, runs), key=lambda run: -(run.last_request_time or 0)
                )[offset : offset + limit]
            )
        )

    def get_training_run(self, training_run_id: str) -> APIFuture[TrainingRun]:
        """One run by its id."""
        return self._session.query("run", training_run_id).map(_run)

    def get_training_run_by_tinker_path(self, tinker_path: str) -> APIFuture[TrainingRun]:
        """The run of a checkpoint."""
        return self.get_training_run(parse_path(tinker_path).run_id)

    def list_checkpoints(self, training_run_id: str) -> APIFuture[CheckpointsListResponse]:
        """The checkpoints of one run, latest first."""
        return self._checkpoints(training_run_id, 0, None)

    def list_user_checkpoints(
        self, limit: int = 100, offset: int = 0
    ) -> APIFuture[CheckpointsListResponse]:
        """All checkpoints, latest first."""
        return self._checkpoints("", offset, offset + limit)

    def _checkpoints(
        self, run_id: str, first: int, last: int | None
    ) -> APIFuture[CheckpointsListResponse]:
        return self._session.query_all("checkpoints", run_id).map(
            lambda checkpoints: CheckpointsListResponse(
                checkpoints=sorted(map(_checkpoint, checkpoints), key=lambda item: -item.time)[
                    first:last
                ]
            )
        )


def _run(fields: Mapping[str, Any]) -> TrainingRun:
    return TrainingRun(
        training_run_id=fields["run_id"],
        base_model=fields["base_model"],
        lora_rank=fields["rank"],
        corrupted=fields.get("is_lost", False),
        last_request_time=fields.get("last_request_time"),
        user_metadata=fields.get("user_metadata", {}),
    )


def _checkpoint(fields: Mapping[str, Any]) -> Checkpoint:
    path = parse_path(fields["path"])
    return Checkpoint(
        checkpoint_id=f"{path.kind}/{path.name}",
        checkpoint_type="training" if path.kind == "weights" else "sampler",
        time=fields["time"],
        tinker_path=fields["path"],
        size_bytes=fields.get("size_bytes"),
        user_metadata=fields.get("user_metadata", {}),
    )
