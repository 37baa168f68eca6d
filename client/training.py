"""The client of one training run."""

import os
import secrets
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from . import custom_loss
from .adam import check_adam
from .answers import read_result, read_saved
from .arguments import require_type
from .batch import build_parts
from .commands import Commands
from .custom_loss import NumpyLoss, TorchLoss
from .errors import BadRequest
from .futures import APIFuture, as_coroutine, in_thread
from .losses import fill_config, find_loss
from .messages import (
    ForkRun,
    ModelCard,
    OptimStep,
    SaveState,
)
from .paths import check_name, parse_path
from .rest import RestClient
from .sampling import SamplingClient, open_sampler
from .session import Session, check_metadata, refuse_unserved
from .tensor_data import NumpyArray
from .tokenizers import load_tokenizer
from .ttl import check_ttl
from .types import (
    AdamParams,
    Datum,
    ForwardBackwardOutput,
    GetInfoResponse,
    LoadWeightsResponse,
    OptimStepResponse,
    SaveWeightsExternalResponse,
    SaveWeightsForSamplerResponse,
    SaveWeightsResponse,
)

T = TypeVar("T")

EXPORT_TTL_S = 3600  # of the state that an export writes and deletes


class TrainingClient:
    """Trains one adapter.

    Calls return at once and take effect in the order in which they were made; any number may be on
    their way. `forward_backward`s add up gradients until an `optim_step` uses them. Methods ending
    in `_async` do the same from a coroutine. Made by `ServiceClient`.
    """

    def __init__(
        self, session: Session, info: GetInfoResponse, card: ModelCard, next_seq: int = 1
    ) -> None:
        self._session = session
        self._info = info
        self._card = card
        self._commands = Commands(session, info.model_id, next_seq)

    @property
    def model_id(self) -> str:
        """The run's id."""
        return self._info.model_id

    # --- training ---------------------------------------------------------------------------------

    def forward(
        self,
        data: Sequence[Datum],
        loss_fn: str,
        loss_fn_config: Mapping[str, float] | None = None,
    ) -> APIFuture[ForwardBackwardOutput]:
        """Compute a loss and log-probabilities, and no gradient; as `forward_backward`."""
        return self._call(data, loss_fn, loss_fn_config, forward_only=True)

    def forward_backward(
        self,
        data: Sequence[Datum],
        loss_fn: str,
        loss_fn_config: Mapping[str, float] | None = None,
    ) -> APIFuture[ForwardBackwardOutput]:
        """Compute a loss and add its gradient to that of the run.

        The loss is a sum over tokens: two calls, or one with the data of both, are the same. A call
        that fails adds nothing.

        Args:
            data: at least one datum; their arrays are copied before this returns.
            loss_fn: a name of `losses.LOSSES`.
            loss_fn_config: its options; None takes the defaults.

        Raises:
            BadRequest: something in the call cannot be; nothing was sent.
        """
        return self._call(data, loss_fn, loss_fn_config, forward_only=False)

    def forward_backward_custom(
        self,
        data: Sequence[Datum],
        loss_fn: TorchLoss | None = None,
        *,
        numpy_fn: NumpyLoss | None = None,
    ) -> APIFuture[ForwardBackwardOutput]:
        """Add the gradient of a loss that the caller computes from log-probabilities.

        Costs a `forward` and a `forward_backward`. The function runs in a thread of its own when
        the log-probabilities are there; calls made meanwhile take effect after this one. When the
        function raises, its exception is the result and nothing is added.

        Args:
            data: with the input `target_tokens`; others are for the function alone.
            loss_fn: (data, log-probabilities, one tensor a datum) to (loss, metrics), in torch.
            numpy_fn: the same with arrays to (loss, gradients, one array a datum); no torch.

        Log-probabilities and gradients have the shape of `target_tokens`, [N] or [N, K]. Of sparse
        ones the places that are not listed are 0, and their gradient is not used.

        Raises:
            BadRequest: as `forward_backward`, or not exactly one function.
        """
        evaluate = custom_loss.evaluator(loss_fn, numpy_fn)
        data = list(data)
        parts = build_parts(custom_loss.forward_data(data), "cross_entropy", self._card)
        forward, second_seq = self._commands.send_forward_and_reserve(parts, "cross_entropy")

        def send_second(gradients: Sequence[NumpyArray]) -> APIFuture[ForwardBackwardOutput]:
            weighted = custom_loss.backward_data(data, gradients)
            second = build_parts(weighted, "cross_entropy", self._card)
            return self._commands.send_reserved(second_seq, second, "cross_entropy")

        return custom_loss.start(
            forward,
            lambda output: evaluate(data, output),
            send_second,
            lambda: self._commands.void(second_seq),
        )

    def optim_step(
        self, optim_params: AdamParams | None = None, *, adam_params: AdamParams | None = None
    ) -> APIFuture[OptimStepResponse]:
        """Apply the accumulated gradient by one step of AdamW, and clear it.

        The metrics always hold the gradient's norm before clipping, `unclipped_grad_l2:mean`.

        Args:
            optim_params: None takes the defaults.
            adam_params: another name of it.

        Raises:
            BadRequest: a field is out of its range.
        """
        if optim_params is not None and adam_params is not None:
            raise BadRequest("optim_params and adam_params are two names of one argument")
        given = adam_params if optim_params is None else optim_params
        params = AdamParams() if given is None else given
        check_adam(params)
        return self._commands.send(
            lambda number, seq: OptimStep(
                request_id=number,
                run_id=self.model_id,
                seq=seq,
                digest=b"",
                learning_rate=float(params.learning_rate),
                beta1=float(params.beta1),
                beta2=float(params.beta2),
                eps=float(params.eps),
                weight_decay=float(params.weight_decay),
                grad_clip_norm=float(params.grad_clip_norm),
            ),
            lambda parts: OptimStepResponse(metrics=dict(read_result(parts)["metrics"])),
        )

    # --- states and weights -----------------------------------------------------------------------

    def save_state(
        self,
        name: str,
        ttl_seconds: int | None = None,
        overwrite: bool = False,
        user_metadata: Mapping[str, str] | None = None,
        *,
        include_optimizer: bool = True,
    ) -> APIFuture[SaveWeightsResponse]:
        """Save weights and optimizer state, to train on from later.

        Args:
            name: letters, digits and `_.=+@-`.
            ttl_seconds: it is deleted after so long, at most ten years; None keeps it.
            overwrite: replace a state of that name; otherwise that is a `Conflict`.
            user_metadata: kept beside it.
            include_optimizer: with the optimizer's moments and step count, three times the size.
        """
        check_name(name)
        require_type("overwrite", overwrite, bool, "a bool")
        require_type("include_optimizer", include_optimizer, bool, "a bool")
        ttl_s = check_ttl(ttl_seconds)
        metadata = check_metadata(user_metadata)
        return self._commands.send(
            lambda number, seq: SaveState(
                request_id=number,
                run_id=self.model_id,
                seq=seq,
                digest=b"",
                name=name,
                overwrite=overwrite,
                include_optimizer=include_optimizer,
                ttl_s=ttl_s,
                user_metadata=metadata,
            ),
            lambda parts: SaveWeightsResponse(**read_saved(parts)),
        )

    def load_state(
        self, path: str, weights_access_token: str | None = None
    ) -> APIFuture[LoadWeightsResponse]:
        """Replace the weights by those of a saved state, with a fresh optimizer.

        Gradients that were accumulated are cleared.
        """
        return self._load(path, weights_access_token, with_optimizer=False)

    def load_state_with_optimizer(
        self, path: str, weights_access_token: str | None = None
    ) -> APIFuture[LoadWeightsResponse]:
        """Replace weights and optimizer state by those of a saved state."""
        return self._load(path, weights_access_token, with_optimizer=True)

    def save_weights_for_sampler(
        self,
        name: str,
        ttl_seconds: int | None = None,
        user_metadata: Mapping[str, str] | None = None,
    ) -> APIFuture[SaveWeightsForSamplerResponse]:
        """Save the weights alone, under a name that is free, to sample from.

        Args:
            name: letters, digits and `_.=+@-`; saved weights never change, so none is replaced.
            ttl_seconds: they are deleted after so long, at most ten years; None keeps them.
            user_metadata: kept beside them.
        """
        return self._commands.send_freeze(
            check_name(name),
            "",
            lambda parts: SaveWeightsForSamplerResponse(**read_saved(parts)),
            ttl_s=check_ttl(ttl_seconds),
            metadata=check_metadata(user_metadata),
        )

    def save_weights_external(
        self,
        name: str,
        ttl_seconds: int | None = None,
        age_encryption_recipients: Sequence[str] | None = None,
    ) -> APIFuture[SaveWeightsExternalResponse]:
        """Save the weights, under a name that is free, as an adapter for programs elsewhere.

        `RestClient.export_peft` and `download_checkpoint` fetch it.

        Args:
            name: letters, digits and `_.=+@-`.
            ttl_seconds: they are deleted after so long, at most ten years; None keeps them.
            age_encryption_recipients: not served.
        """
        refuse_unserved(age_encryption_recipients=age_encryption_recipients)
        return self._commands.send_freeze(
            check_name(name),
            "",
            lambda parts: SaveWeightsExternalResponse(**read_saved(parts)),
            ttl_s=check_ttl(ttl_seconds),
            is_external=True,
        )

    def export_peft(
        self,
        directory: str | os.PathLike[str],
        *,
        unembed: str = "include",
        base_model_name_or_path: str = "",
        overwrite: bool = False,
    ) -> Path:
        """Write the weights as they are now as an adapter that peft loads; waits for it.

        Arguments are those of `RestClient.export_peft`.
        """
        name = f"export-{secrets.token_hex(8)}"
        saved = self.save_state(name, EXPORT_TTL_S, include_optimizer=False).result()
        rest = RestClient(self._session)
        try:
            return rest.export_peft(
                saved.path,
                directory,
                unembed=unembed,
                base_model_name_or_path=base_model_name_or_path,
                overwrite=overwrite,
            )
        finally:
            rest.delete_checkpoint_from_tinker_path(saved.path)

    def save_weights_and_get_sampling_client(
        self, name: str | None = None, retry_config: object = None
    ) -> SamplingClient:
        """Freeze the weights as they are now, and sample from them; waits for it.

        Nothing is written to a file. Training on does not change what the sampler draws from.

        Args:
            name: no effect, as in the official SDK.
            retry_config: not served; the connection retries.
        """
        refuse_unserved(retry_config=retry_config)
        sampler_id = self._session.new_sampler_id()
        return self._commands.send_freeze(
            "", sampler_id, lambda parts: SamplingClient(self._session, sampler_id, self._card)
        ).result()

    def create_sampling_client(
        self, model_path: str, retry_config: object = None
    ) -> SamplingClient:
        """A client that samples from saved weights; waits for it."""
        refuse_unserved(retry_config=retry_config)
        return open_sampler(self._session, model_path=model_path)

    # --- branching and ending ---------------------------------------------------------------------

    def fork(self, user_metadata: Mapping[str, str] | None = None) -> "TrainingClient":
        """A new run from the state that this one has after the calls made so far; waits for it.

        The state is weights, optimizer moments, step count and accumulated gradient. From then on
        the two have nothing to do with each other. Nothing is copied until one of them is trained.

        Args:
            user_metadata: kept beside the new run.

        Raises:
            BadRequest: the weights of this run are not finite (code `non_finite`).
            Busy: there was no room for it for a minute.
            EngineFailed: this run is lost.
        """
        return self._send_fork(user_metadata).result()

    async def fork_async(self, user_metadata: Mapping[str, str] | None = None) -> "TrainingClient":
        """As `fork`; it takes its place among the calls when the coroutine begins to run."""
        return await self._send_fork(user_metadata)

    def close(self) -> None:
        """Give the run up: the server forgets its state, and keeps what was saved and its samplers.

        Does not wait. Calls without an answer fail as `cancelled`, later ones raise NotFound. Safe
        to repeat. Leaving a `with` block does the same.
        """
        self._commands.close()

    def __enter__(self) -> "TrainingClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- about the run ----------------------------------------------------------------------------

    def get_info(self) -> GetInfoResponse:
        """What the run trains; known since its creation."""
        return self._info

    def get_tokenizer(self) -> Any:
        """The base model's tokenizer, as `transformers` loads it."""
        return load_tokenizer(self._card)

    # --- the same for coroutines ------------------------------------------------------------------

    # A command's coroutine ends when it is sent and gives its future; the others give the result.
    forward_async = as_coroutine(forward)
    forward_backward_async = as_coroutine(forward_backward)
    forward_backward_custom_async = as_coroutine(forward_backward_custom)
    optim_step_async = as_coroutine(optim_step)
    save_state_async = as_coroutine(save_state)
    load_state_async = as_coroutine(load_state)
    load_state_with_optimizer_async = as_coroutine(load_state_with_optimizer)
    save_weights_for_sampler_async = as_coroutine(save_weights_for_sampler)
    save_weights_external_async = as_coroutine(save_weights_external)
    export_peft_async = in_thread(export_peft)
    save_weights_and_get_sampling_client_async = in_thread(save_weights_and_get_sampling_client)
    create_sampling_client_async = in_thread(create_sampling_client)
    get_info_async = as_coroutine(get_info)
    close_async = as_coroutine(close)

    # --- a client is its own future ---------------------------------------------------------------

    def result(self, timeout: float | None = None) -> "TrainingClient":
        """The client itself: it was created before it was returned."""
        return self

    def __await__(self) -> Generator[Any, None, "TrainingClient"]:
        yield from ()
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # The copy goes on with the next number: one of the two may be used from here on.
        return (TrainingClient, (self._session, self._info, self._card, self._commands.next_seq))

    def __repr__(self) -> str:
        return f"TrainingClient({self.model_id!r}, {self._info.model_name!r})"

    # --- how commands are sent --------------------------------------------------------------------

    def _call(
        self,
        data: Sequence[Datum],
        loss_fn: str,
        loss_fn_config: Mapping[str, float] | None,
        forward_only: bool,
    ) -> APIFuture[ForwardBackwardOutput]:
        config = fill_config(find_loss(loss_fn), loss_fn_config)
        parts = build_parts(data, loss_fn, self._card, config)
        return self._commands.send_call(parts, loss_fn, config, forward_only=forward_only)

    def _send_fork(self, user_metadata: Mapping[str, str] | None) -> APIFuture["TrainingClient"]:
        metadata = check_metadata(user_metadata)
        new_run_id = self._session.new_run_id()
        info = replace(self._info, model_id=new_run_id, forked_from=self.model_id)
        return self._commands.send(
            lambda number, seq: ForkRun(
                request_id=number,
                run_id=self.model_id,
                seq=seq,
                digest=b"",
                new_run_id=new_run_id,
                user_metadata=metadata,
            ),
            lambda parts: TrainingClient(self._session, info, self._card),
        )

    def _load(
        self, path: str, weights_access_token: str | None, with_optimizer: bool
    ) -> APIFuture[LoadWeightsResponse]:
        refuse_unserved(weights_access_token=weights_access_token)
        parse_path(path)
        return self._commands.send_load(path, with_optimizer)
