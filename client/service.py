"""The first thing a program makes: a session with a server, and the clients that belong to it."""

import secrets
from collections.abc import Mapping
from typing import Any

import zmq

from . import environment
from .answers import read_result
from .arguments import is_number, shown
from .connection import Connection
from .errors import BadRequest
from .events import EventStream
from .futures import APIFuture, as_coroutine, in_thread
from .limits import limit
from .local_files import Source
from .messages import CreateRun
from .paths import parse_path
from .rest import RestClient
from .sampling import SamplingClient, open_sampler
from .session import Session, check_metadata, read_cards, refuse_unserved
from .tokenizers import load_tokenizer
from .training import TrainingClient
from .types import (
    GetInfoResponse,
    GetServerCapabilitiesResponse,
    LoraConfig,
    ModelData,
    SupportedModel,
)

_MAX_RANK = limit("rank")


class ServiceClient:
    """A session with a server. Nothing is sent before the first call.

    Args:
        user_metadata: told to the server with the session.
        project_id: not served.
        display_name: of the session, for people.
        base_url: the server's address, tcp://host:port or ipc://path; None takes WEFT_ADDRESS, or
            tcp://127.0.0.1:5757.
        api_key: of a tenant of the server, see docs/keys.md; None takes WEFT_API_KEY.
        context: the ZeroMQ context of an engine in this process, for its inproc:// address.
        show_waiting: say in a terminal what a wait of the main thread is for once it takes longer
            than 2 s, in one line of stderr that vanishes; None does unless WEFT_QUIET is set.

    Raises:
        BadRequest: no such kind of address, or an argument that is none.
    """

    def __init__(
        self,
        user_metadata: Mapping[str, str] | None = None,
        project_id: str | None = None,
        *,
        display_name: str | None = None,
        base_url: str | None = None,
        api_key: str | None = None,
        context: "zmq.Context[Any] | None" = None,
        show_waiting: bool | None = None,
    ) -> None:
        refuse_unserved(project_id=project_id)
        self._address = base_url or environment.server_address()
        self._api_key = environment.api_key() if api_key is None else api_key
        self._metadata = check_metadata(user_metadata)
        self._display_name = display_name
        self._show_waiting = show_waiting
        self._session = Session.open(
            self._address,
            self._api_key,
            self._metadata,
            context,
            display_name=display_name or "",
            show_waiting=not environment.is_quiet() if show_waiting is None else show_waiting,
        )

    @property
    def connection(self) -> Connection:
        """What this client and all that it makes share."""
        return self._session.connection

    def get_server_capabilities(self) -> GetServerCapabilitiesResponse:
        """The models that can be trained and sampled; waits for the server."""
        cards = read_cards(self._session.query("capabilities").result())
        return GetServerCapabilitiesResponse(
            supported_models=[
                SupportedModel(
                    model_name=card.name,
                    max_context_length=card.max_context,
                    aliases=card.aliases,
                    vocab_size=card.vocab_size,
                    max_rank=card.max_rank,
                    tokenizer=card.tokenizer,
                    model_type=card.model_type,
                    width=card.width,
                    runs_on=card.runs_on,
                    targets=card.targets,
                    notes=card.notes,
                )
                for card in cards
            ]
        )

    def get_status(self) -> APIFuture[dict[str, Any]]:
        """What the server holds and does: models, workers, sessions, queues, usage."""
        return self._session.query("status")

    def get_metrics(self) -> APIFuture[dict[str, Any]]:
        """What the server has counted since its start, of all tenants together.

        Requests and their times, tokens, steps, memory: the figures behind the gateway's
        `/metrics`, named as in `Query`. Counters only grow; differences of two answers are rates.

        Raises:
            Unauthorized: the server asks for API keys, and this is not its operator's.
        """
        return self._session.query("metrics")

    def create_lora_training_client(
        self,
        base_model: str,
        rank: int = 32,
        seed: int | None = None,
        train_mlp: bool = True,
        train_attn: bool = True,
        train_unembed: bool = True,
        user_metadata: Mapping[str, str] | None = None,
        *,
        alpha: float = 32.0,
    ) -> TrainingClient:
        """Create a run and wait for it.

        Args:
            base_model: a name or alias of the server's models.
            rank: of the adapter, 1 to 256.
            seed: of its initial values; None draws one.
            train_mlp: adapt gate, up and down.
            train_attn: adapt q, k, v and o.
            train_unembed: adapt the unembedding.
            user_metadata: kept beside the run.
            alpha: the adapter's output is scaled by alpha / rank.

        Raises:
            BadRequest: an argument is out of its range.
            NotFound: no such model; the message lists what there is.
            Busy: there was no room for it for a minute.
        """
        config = LoraConfig(
            rank=rank,
            seed=seed,
            train_mlp=train_mlp,
            train_attn=train_attn,
            train_unembed=train_unembed,
            alpha=alpha,
        )
        if not base_model:
            raise BadRequest("base_model is required")
        _check_config(config)
        return self._create(config, user_metadata, base_model=base_model)

    def create_training_client_from_state(
        self,
        path: str,
        base_model: str | None = None,
        user_metadata: Mapping[str, str] | None = None,
        weights_access_token: str | None = None,
    ) -> TrainingClient:
        """Create a run that starts from saved weights, with a fresh optimizer, and wait for it.

        Args:
            path: of a checkpoint of any kind, of one's own or public.
            base_model: None takes the state's; another than the state's is refused.
            user_metadata: kept beside the run.
            weights_access_token: not served.
        """
        return self._from_state(path, base_model, user_metadata, weights_access_token, False)

    def create_training_client_from_state_with_optimizer(
        self,
        path: str,
        base_model: str | None = None,
        user_metadata: Mapping[str, str] | None = None,
        weights_access_token: str | None = None,
    ) -> TrainingClient:
        """As `create_training_client_from_state`, with the optimizer as it was saved."""
        return self._from_state(path, base_model, user_metadata, weights_access_token, True)

    def create_training_client_from_peft(
        self,
        source: Source,
        base_model: str,
        name: str = "imported",
        ttl_seconds: int | None = None,
        user_metadata: Mapping[str, str] | None = None,
        *,
        ignore_dropout: bool = False,
    ) -> TrainingClient:
        """Upload an adapter, and create a run that starts from it; waits for both.

        Arguments are those of `RestClient.upload_peft`; the uploaded state stays as a checkpoint.
        """
        uploaded = self.create_rest_client().upload_peft(
            source,
            base_model,
            name=name,
            ttl_seconds=ttl_seconds,
            user_metadata=user_metadata,
            ignore_dropout=ignore_dropout,
        )
        return self._from_state(uploaded.path, base_model, user_metadata, None, False)

    def create_sampling_client(
        self,
        model_path: str | None = None,
        base_model: str | None = None,
        retry_config: object = None,
    ) -> SamplingClient:
        """A client that samples from saved weights or from a base model; waits for it.

        Args:
            model_path: of a checkpoint of any kind, of one's own or public.
            base_model: a name or alias of the server's models; exactly one of the two is given.
            retry_config: not served; the connection retries.
        """
        refuse_unserved(retry_config=retry_config)
        return open_sampler(self._session, base_model=base_model or "", model_path=model_path or "")

    def copy_weights(
        self,
        path: str,
        *,
        ttl_seconds: int | None = None,
        weights_access_token: str | None = None,
    ) -> APIFuture[str]:
        """Copy a checkpoint, of one's own or a public one; the result is the path of the copy.

        Arguments are those of `RestClient.copy_weights`.
        """
        refuse_unserved(weights_access_token=weights_access_token)
        return self.create_rest_client().copy_weights(path, ttl_seconds=ttl_seconds)

    def create_rest_client(self) -> RestClient:
        """A client that lists and changes runs, checkpoints and sessions."""
        return RestClient(self._session)

    def watch(self) -> EventStream:
        """A stream of what happens on the server from now on; waits for the server.

        Its events are those of the caller's own sessions, runs and calls, and of the workers.

        Raises:
            Busy: too many clients watch.
        """
        return self.connection.watch()

    def get_tokenizer(self, base_model: str) -> Any:
        """The tokenizer of a model by name or alias, as `transformers` loads it."""
        return load_tokenizer(self._session.find_card(base_model))

    def close(self) -> None:
        """End the session and every client of it; unanswered calls fail."""
        self.connection.close()

    get_server_capabilities_async = in_thread(get_server_capabilities)
    create_lora_training_client_async = in_thread(create_lora_training_client)
    create_training_client_from_state_async = in_thread(create_training_client_from_state)
    create_training_client_from_state_with_optimizer_async = in_thread(
        create_training_client_from_state_with_optimizer
    )
    create_training_client_from_peft_async = in_thread(create_training_client_from_peft)
    create_sampling_client_async = in_thread(create_sampling_client)
    create_rest_client_async = as_coroutine(create_rest_client)
    watch_async = in_thread(watch)

    def __enter__(self) -> "ServiceClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        if self._address.startswith("inproc://"):
            raise BadRequest("a client of an engine in this process cannot be pickled")
        given = (self._metadata, self._address, self._api_key, self._show_waiting)
        return (_restore, (*given, self._display_name))

    def __repr__(self) -> str:
        return f"ServiceClient(base_url={self._address!r})"

    def _from_state(
        self,
        path: str,
        base_model: str | None,
        user_metadata: Mapping[str, str] | None,
        weights_access_token: str | None,
        with_optimizer: bool,
    ) -> TrainingClient:
        refuse_unserved(weights_access_token=weights_access_token)
        parse_path(path)
        return self._create(
            LoraConfig(),
            user_metadata,
            base_model=base_model or "",
            from_path=path,
            with_optimizer=with_optimizer,
        )

    def _create(
        self,
        config: LoraConfig,
        user_metadata: Mapping[str, str] | None,
        *,
        base_model: str,
        from_path: str = "",
        with_optimizer: bool = False,
    ) -> TrainingClient:
        metadata = check_metadata(user_metadata)
        run_id = self._session.new_run_id()
        created = self._session.request(
            lambda number: CreateRun(
                request_id=number,
                run_id=run_id,
                seq=0,
                digest=b"",
                base_model=base_model,
                rank=config.rank,
                alpha=float(config.alpha),
                seed=secrets.randbits(32) if config.seed is None else config.seed,
                train_attn=config.train_attn,
                train_mlp=config.train_mlp,
                train_unembed=config.train_unembed,
                from_path=from_path,
                with_optimizer=with_optimizer,
                user_metadata=metadata,
            ),
            read_result,
        )
        result = created.result()
        card = self._session.find_card(result["base_model"])
        info = GetInfoResponse(
            model_id=run_id,
            model_data=ModelData(
                model_name=card.name,
                tokenizer_id=card.tokenizer or None,
                model_type=card.model_type,
                width=card.width,
            ),
            lora_rank=result["rank"],
            lora_alpha=result["alpha"],
            model_name=card.name,
        )
        return TrainingClient(self._session, info, card)


def _restore(
    metadata: Mapping[str, str],
    address: str,
    api_key: str,
    show_waiting: bool | None,
    display_name: str | None,
) -> ServiceClient:
    return ServiceClient(
        metadata,
        display_name=display_name,
        base_url=address,
        api_key=api_key,
        show_waiting=show_waiting,
    )


def _check_config(config: LoraConfig) -> None:
    for name, value, low, high in (
        ("rank", config.rank, 1, _MAX_RANK),
        ("seed", 0 if config.seed is None else config.seed, -(2**63), 2**63 - 1),
    ):
        if type(value) is not int or not low <= value <= high:
            raise BadRequest(f"{name} is {value!r}, not an integer from {low} to {high}")
    for name in ("train_mlp", "train_attn", "train_unembed"):
        if type(getattr(config, name)) is not bool:
            raise BadRequest(f"{name} is {getattr(config, name)!r}, not a bool")
    if not (config.train_mlp or config.train_attn or config.train_unembed):
        raise BadRequest("at least one of train_unembed, train_mlp, or train_attn must be True")
    if not is_number(config.alpha) or config.alpha <= 0:
        raise BadRequest(f"alpha is {shown(config.alpha)}, not a number above 0")
