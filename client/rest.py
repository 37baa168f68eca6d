"""What the server keeps: runs, checkpoints, sessions; listed, changed, sent and taken."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .answers import read_result
from .arguments import shown
from .errors import BadRequest
from .file_messages import (
    CopyCheckpoint,
    DeleteCheckpoint,
    ExpireCheckpoint,
    OpenDownload,
    OpenUpload,
    PublishCheckpoint,
    RenameCheckpoint,
)
from .futures import APIFuture, in_thread
from .listings import (
    read_checkpoint,
    read_cursor,
    read_run,
    read_sampler,
    read_session,
    read_weights_info,
)
from .local_files import Adapter, PathLike, Source, write_archive, write_folder
from .paths import CheckpointPath, check_name, parse_path
from .rest_types import (
    Checkpoint,
    CheckpointsListResponse,
    GetSamplerResponse,
    GetSessionResponse,
    ListSessionsResponse,
    TrainingRun,
    TrainingRunsResponse,
    WeightsInfoResponse,
)
from .session import Session, check_metadata, refuse_unserved
from .transfers import Download, Upload
from .ttl import check_ttl


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
        """The runs, latest request first; those that have ended as long as anything is left."""
        _check_page(limit, offset)
        return self._session.query_pages("runs", "", offset, limit).map(
            lambda pages: TrainingRunsResponse(
                training_runs=[read_run(fields) for page in pages for fields in page["runs"]],
                cursor=read_cursor(pages, offset, limit),
            )
        )

    def get_training_run(self, training_run_id: str) -> APIFuture[TrainingRun]:
        """One run by its id."""
        return self._session.query("run", training_run_id).map(read_run)

    def get_training_run_by_tinker_path(self, tinker_path: str) -> APIFuture[TrainingRun]:
        """The run of a checkpoint."""
        return self.get_training_run(parse_path(tinker_path).run_id)

    def list_checkpoints(self, training_run_id: str) -> APIFuture[CheckpointsListResponse]:
        """The checkpoints of one run, latest first."""
        return self._session.query_pages("checkpoints", training_run_id).map(
            lambda pages: CheckpointsListResponse(checkpoints=_checkpoints(pages))
        )

    def list_user_checkpoints(
        self, limit: int = 100, offset: int = 0
    ) -> APIFuture[CheckpointsListResponse]:
        """All checkpoints, latest first."""
        _check_page(limit, offset)
        return self._session.query_pages("checkpoints", "", offset, limit).map(
            lambda pages: CheckpointsListResponse(
                checkpoints=_checkpoints(pages), cursor=read_cursor(pages, offset, limit)
            )
        )

    def get_weights_info_by_tinker_path(self, tinker_path: str) -> APIFuture[WeightsInfoResponse]:
        """What a checkpoint was trained on, and how; of a public one of anybody's, too."""
        parse_path(tinker_path)
        return self._session.query("checkpoints", tinker_path).map(
            lambda found: read_weights_info(found["checkpoints"][0])
        )

    def list_sessions(self, limit: int = 20, offset: int = 0) -> APIFuture[ListSessionsResponse]:
        """The ids of the sessions, latest first; ended ones as long as they are remembered."""
        _check_page(limit, offset)
        return self._session.query_pages("sessions", "", offset, limit).map(
            lambda pages: ListSessionsResponse(
                sessions=[one["session_id"] for page in pages for one in page["sessions"]]
            )
        )

    def get_session(self, session_id: str) -> APIFuture[GetSessionResponse]:
        """A session with its runs and samplers."""
        return self._session.query_pages("session", session_id).map(read_session)

    def get_sampler(self, sampler_id: str) -> APIFuture[GetSamplerResponse]:
        """What a sampler samples from."""
        return self._session.query("sampler", sampler_id).map(read_sampler)

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

    def publish_checkpoint_from_tinker_path(self, tinker_path: str) -> APIFuture[None]:
        """Let everybody who knows its path read a checkpoint: sample, train from it, export, copy.

        Its `user_metadata` stays its owner's, and nobody else can change or delete it.
        """
        return self._publish(tinker_path, True)

    def unpublish_checkpoint_from_tinker_path(self, tinker_path: str) -> APIFuture[None]:
        """Let its owner alone read a checkpoint; what others have opened goes on."""
        return self._publish(tinker_path, False)

    def copy_weights(
        self,
        path: str,
        destination_project_id: str | None = None,
        *,
        ttl_seconds: int | None = None,
        weights_access_token: str | None = None,
        user_metadata: Mapping[str, str] | None = None,
    ) -> APIFuture[str]:
        """Copy a checkpoint, of one's own or a public one; the result is the path of the copy.

        The copy has the source's kind and name, and is private.

        Args:
            path: of the source.
            destination_project_id: not served.
            ttl_seconds: the copy is deleted after so long, at most ten years; None keeps it.
            weights_access_token: not served.
            user_metadata: kept beside the copy.
        """
        refuse_unserved(
            destination_project_id=destination_project_id,
            weights_access_token=weights_access_token,
        )
        target = str(replace(parse_path(path), run_id=self._session.new_run_id()))
        ttl_s, metadata = check_ttl(ttl_seconds), check_metadata(user_metadata)
        return self._session.request(
            lambda number: CopyCheckpoint(
                request_id=number, path=path, target=target, ttl_s=ttl_s, user_metadata=metadata
            ),
            lambda parts: read_result(parts)["path"],
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
            tinker_path: of a checkpoint of any kind, of one's own or public.
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
            tinker_path: of a checkpoint of any kind, of one's own or public.
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

    def _publish(self, tinker_path: str, public: bool) -> APIFuture[None]:
        parse_path(tinker_path)
        return self._session.request(
            lambda number: PublishCheckpoint(request_id=number, path=tinker_path, public=public),
            lambda parts: None,
        )


def _checkpoints(pages: Sequence[Mapping[str, Any]]) -> list[Checkpoint]:
    return [read_checkpoint(fields) for page in pages for fields in page["checkpoints"]]


def _check_page(limit: int, offset: int) -> None:
    for name, value, least in (("limit", limit, 1), ("offset", offset, 0)):
        if type(value) is not int or not least <= value < 2**63:
            raise BadRequest(f"{name} is {shown(value)}, not an integer from {least}")


def _opener(
    tinker_path: str, form: str, unembed: str, base_model: str
) -> Callable[[int], OpenDownload]:
    parse_path(tinker_path)
    if form == "state" and unembed != "include":
        raise BadRequest(f"unembed is {shown(unembed)}, and a state always holds everything")
    return lambda number: OpenDownload(
        request_id=number, path=tinker_path, form=form, unembed=unembed, base_model=base_model
    )
