"""What the server keeps: runs and checkpoints, listed, changed, sent and taken."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .answers import read_result
from .arguments import shown
from .errors import BadRequest
from .file_messages import (
    DeleteCheckpoint,
    ExpireCheckpoint,
    OpenDownload,
    OpenUpload,
    RenameCheckpoint,
)
from .futures import APIFuture, in_thread
from .local_files import Adapter, PathLike, Source, write_archive, write_folder
from .paths import CheckpointPath, check_name, parse_path
from .session import Session, check_metadata
from .transfers import Download, Upload
from .ttl import check_ttl
from .types import (
    Checkpoint,
    CheckpointsListResponse,
    TrainingRun,
    TrainingRunsResponse,
    WeightsInfoResponse,
)


@dataclass(frozen=True, kw_only=True)
class UploadPeftResponse:
    """The training state that an uploaded adapter became."""

    path: str
    size_bytes: int
    lora_rank: int
    lora_alpha: float
    train_attn: bool
    train_mlp: bool
    train_unembed: bool


class RestClient:
    """Keeps the caller's runs and checkpoints in order. Made by `ServiceClient`."""

    def __init__(self, session: Session) -> None:
        self._session = session

    # --- what there is ----------------------------------------------------------------------------

    def list_training_runs(
        self, limit: int = 20, offset: int = 0
    ) -> APIFuture[TrainingRunsResponse]:
        """The runs, latest request first."""
        _check_page(limit, offset)
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
        _check_page(limit, offset)
        return self._checkpoints("", offset, offset + limit)

    def get_weights_info_by_tinker_path(self, tinker_path: str) -> APIFuture[WeightsInfoResponse]:
        """What a checkpoint was trained on, and how."""
        parse_path(tinker_path)
        return self._session.query("checkpoints", tinker_path).map(
            lambda found: _weights_info(found["checkpoints"][0])
        )

    # --- changing it ------------------------------------------------------------------------------

    def delete_checkpoint(self, training_run_id: str, checkpoint_id: str) -> APIFuture[None]:
        """Delete a checkpoint by its run and its id, such as "weights/first"."""
        return self.delete_checkpoint_from_tinker_path(f"weft://{training_run_id}/{checkpoint_id}")

    def delete_checkpoint_from_tinker_path(self, tinker_path: str) -> APIFuture[None]:
        """Delete a checkpoint; runs and samplers that were made from it go on."""
        parse_path(tinker_path)
        return self._session.request(
            lambda number: DeleteCheckpoint(request_id=number, path=tinker_path),
            lambda parts: None,
        )

    def rename_checkpoint(self, tinker_path: str, name: str) -> APIFuture[str]:
        """Give a checkpoint another name under its run; the result is its new path."""
        parse_path(tinker_path)
        check_name(name)
        return self._session.request(
            lambda number: RenameCheckpoint(request_id=number, path=tinker_path, name=name),
            lambda parts: read_result(parts)["path"],
        )

    def set_checkpoint_ttl_from_tinker_path(
        self, tinker_path: str, ttl_seconds: int | None
    ) -> APIFuture[None]:
        """Delete a checkpoint so many seconds from now, at most ten years; None keeps it."""
        parse_path(tinker_path)
        ttl_s = check_ttl(ttl_seconds)
        return self._session.request(
            lambda number: ExpireCheckpoint(request_id=number, path=tinker_path, ttl_s=ttl_s),
            lambda parts: None,
        )

    # --- files ------------------------------------------------------------------------------------

    def export_peft(
        self,
        tinker_path: str,
        directory: PathLike,
        *,
        unembed: str = "include",
        base_model_name_or_path: str = "",
        overwrite: bool = False,
    ) -> Path:
        """Write a checkpoint as an adapter that peft loads, and vLLM; waits for it.

        The directory gets `adapter_config.json` and `adapter_model.safetensors`.

        Args:
            tinker_path: of a training state or of weights for a sampler.
            directory: made when it is not there.
            unembed: "include" the adapter of the unembedding; "omit" it, which changes what the
                adapter computes; or "separate" it into a second adapter in the folder `unembed`.
            base_model_name_or_path: what the config names; "" takes the server's name of it.
            overwrite: replace files of these names.

        Returns:
            The directory.
        """
        make = _opener(tinker_path, "peft", unembed, base_model_name_or_path)
        with Download(self._session, make) as download:
            return write_folder(directory, download.files, download.read, overwrite)

    def download_checkpoint(
        self,
        tinker_path: str,
        target: PathLike,
        *,
        form: str = "peft",
        unembed: str = "include",
        overwrite: bool = False,
    ) -> Path:
        """Write a checkpoint into one tar; waits for it.

        Args:
            tinker_path: of a training state or of weights for a sampler.
            target: the tar's name.
            form: "peft", as `export_peft` writes it; or "state", the file as the server keeps it,
                `state.safetensors`.
            unembed: of "peft", as in `export_peft`.
            overwrite: replace a file of this name.

        Returns:
            The tar's path.
        """
        make = _opener(tinker_path, form, unembed, "")
        with Download(self._session, make) as download:
            return write_archive(target, download.files, download.read, overwrite)

    def upload_peft(
        self,
        source: Source,
        base_model: str,
        *,
        name: str = "imported",
        ttl_seconds: int | None = None,
        user_metadata: Mapping[str, str] | None = None,
        ignore_dropout: bool = False,
    ) -> UploadPeftResponse:
        """Send an adapter of peft; it becomes a training state, without an optimizer; waits for it.

        What the adapter asks for and Weft does not have is refused by name.

        Args:
            source: a directory with `adapter_config.json` and `adapter_model.safetensors`, or these
                two as bytes by their names.
            base_model: the server's model that it belongs to; its config's own name of it is not
                compared.
            name: of the state.
            ttl_seconds: it is deleted after so long, at most ten years; None keeps it.
            user_metadata: kept beside it.
            ignore_dropout: take an adapter with a `lora_dropout` and train it on without.
        """
        if not base_model:
            raise BadRequest("base_model is required")
        path = str(CheckpointPath(self._session.new_run_id(), "weights", check_name(name)))
        ttl_s, metadata = check_ttl(ttl_seconds), check_metadata(user_metadata)
        with Adapter(source) as adapter:
            upload = Upload(
                self._session,
                lambda number: OpenUpload(
                    request_id=number,
                    path=path,
                    base_model=base_model,
                    sizes=adapter.sizes,
                    ignore_dropout=bool(ignore_dropout),
                    ttl_s=ttl_s,
                    user_metadata=metadata,
                ),
            )
            with upload:
                result = upload.send(adapter.read)
        return UploadPeftResponse(
            path=result["path"],
            size_bytes=result["size_bytes"],
            lora_rank=result["rank"],
            lora_alpha=result["alpha"],
            train_attn=result["train_attn"],
            train_mlp=result["train_mlp"],
            train_unembed=result["train_unembed"],
        )

    export_peft_async = in_thread(export_peft)
    download_checkpoint_async = in_thread(download_checkpoint)
    upload_peft_async = in_thread(upload_peft)

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


def _check_page(limit: int, offset: int) -> None:
    for name, value in (("limit", limit), ("offset", offset)):
        if type(value) is not int or value < 0:
            raise BadRequest(f"{name} is {shown(value)}, not an integer from 0")


def _opener(
    tinker_path: str, form: str, unembed: str, base_model: str
) -> Callable[[int], OpenDownload]:
    parse_path(tinker_path)
    if form == "state" and unembed != "include":
        raise BadRequest(f"unembed is {shown(unembed)}, and a state always holds everything")
    return lambda number: OpenDownload(
        request_id=number, path=tinker_path, form=form, unembed=unembed, base_model=base_model
    )


def _run(fields: Mapping[str, Any]) -> TrainingRun:
    return TrainingRun(
        training_run_id=fields["run_id"],
        base_model=fields["base_model"],
        lora_rank=fields["rank"],
        corrupted=fields.get("is_lost", False),
        last_request_time=fields.get("last_request_time"),
        user_metadata=fields.get("user_metadata", {}),
        forked_from=fields.get("forked_from") or None,
        omitted=fields.get("omitted", ""),
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
        expires_at=fields.get("expires") or None,
        has_optimizer=fields.get("has_optimizer", False),
        omitted=fields.get("omitted", ""),
    )


def _weights_info(fields: Mapping[str, Any]) -> WeightsInfoResponse:
    return WeightsInfoResponse(
        base_model=fields["base_model"],
        lora_rank=fields["rank"],
        lora_alpha=fields["alpha"],
        train_unembed=fields["train_unembed"],
        train_mlp=fields["train_mlp"],
        train_attn=fields["train_attn"],
        has_optimizer=fields["has_optimizer"],
    )
