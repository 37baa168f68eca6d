"""The client of one set of weights to sample from."""

import secrets
import weakref
from collections.abc import Generator, Sequence
from contextlib import suppress
from typing import Any

from .actions import AnswerPart
from .answers import read_result, read_samples
from .arguments import is_number, require_type, shown
from .batch import pack_tokens
from .errors import BadRequest, Disconnected, NotFound
from .futures import APIFuture, as_coroutine, awaited
from .limits import limit
from .messages import CloseSampler, CreateSampler, ModelCard, Sample
from .paths import parse_path
from .session import Session, refuse_unserved
from .tokenizers import load_tokenizer
from .types import ModelInput, SampleResponse, SamplingParams

_MAX_SAMPLES = limit("num_samples")
_MAX_STOPS = limit("stops")


class SamplingClient:
    """Samples from a base model, or from weights that no longer change.

    Any number of calls may be on their way; they are not ordered. Made by `ServiceClient` and
    `TrainingClient`. Weights that have no name are kept until their last client is collected; once
    a client has been pickled, until the session ends.
    """

    def __init__(
        self, session: Session, sampler_id: str, card: ModelCard, owns_sampler: bool = True
    ) -> None:
        self._session = session
        self._card = card
        self.sampler_id = sampler_id
        self._owns_sampler = owns_sampler
        self._is_closed = False
        self._finalizer = weakref.finalize(self, session.connection.discard_sampler, sampler_id)
        self._finalizer.atexit = False  # the session's end closes it
        if not owns_sampler:
            self._finalizer.detach()

    def sample(
        self,
        prompt: ModelInput,
        num_samples: int,
        sampling_params: SamplingParams,
        include_prompt_logprobs: bool = False,
        topk_prompt_logprobs: int = 0,
        topk_sample_logprobs: int = 0,
        target_prompt_logprobs: object = None,
        prompt_alt_tokens_k: int = 0,
        prompt_logprobs_last_n: int | None = None,
    ) -> APIFuture[SampleResponse]:
        """Draw continuations of a prompt.

        Log-probabilities are those of the distribution after temperature and before top_k and
        top_p; those of temperature 0 are of temperature 1. Sample i of a seed is the same whatever
        else is drawn.

        Args:
            prompt: at least one token.
            num_samples: continuations, each from a random stream of its own.
            sampling_params: how to draw.
            include_prompt_logprobs: also score the prompt.
            topk_prompt_logprobs: not served, as all that follow.

        Raises:
            BadRequest: something in the call cannot be; nothing was sent.
        """
        refuse_unserved(
            topk_prompt_logprobs=topk_prompt_logprobs,
            topk_sample_logprobs=topk_sample_logprobs,
            target_prompt_logprobs=target_prompt_logprobs,
            prompt_alt_tokens_k=prompt_alt_tokens_k,
            prompt_logprobs_last_n=prompt_logprobs_last_n,
        )
        if self._is_closed:
            raise NotFound(f"sampler {self.sampler_id!r} was closed")
        require_type("prompt", prompt, ModelInput, "a ModelInput")
        _check_params(sampling_params, num_samples)
        arrays, frames = pack_tokens(
            prompt.to_numpy(), self._card, room=sampling_params.max_tokens or 1
        )
        stop_tokens, stop_strings = _stops(sampling_params.stop, self._card.vocab_size)
        number = self._session.connection.new_request_id()
        header = Sample(
            request_id=number,
            sampler_id=self.sampler_id,
            digest=b"",
            num_tokens=prompt.length,
            num_samples=num_samples,
            max_tokens=-1 if sampling_params.max_tokens is None else sampling_params.max_tokens,
            temperature=float(sampling_params.temperature),
            top_k=sampling_params.top_k,
            top_p=float(sampling_params.top_p),
            seed=secrets.randbits(32) if sampling_params.seed is None else sampling_params.seed,
            stop_tokens=stop_tokens,
            stop_strings=stop_strings,
            default_stop=sampling_params.stop is None,
            prompt_logprobs=bool(include_prompt_logprobs),
            arrays=arrays,
        )

        def convert(parts: Sequence[AnswerPart], keep: object = self) -> SampleResponse:
            return read_samples(parts, number)  # `keep` holds the sampler open until then

        return self._session.connection.send([header], [frames], convert)

    def compute_logprobs(self, prompt: ModelInput) -> APIFuture[list[float | None]]:
        """Score a prompt: the log-probability of each token given those before it, None first."""
        response = self.sample(
            prompt, 1, SamplingParams(max_tokens=1, seed=0), include_prompt_logprobs=True
        )
        return response.map(lambda result: result.prompt_logprobs or [])

    sample_async = awaited(sample)
    compute_logprobs_async = awaited(compute_logprobs)

    def get_base_model(self) -> str:
        """The name of the base model."""
        return self._card.name

    get_base_model_async = as_coroutine(get_base_model)

    def get_tokenizer(self) -> Any:
        """The base model's tokenizer, as `transformers` loads it."""
        return load_tokenizer(self._card)

    def close(self) -> None:
        """Give the sampler up: the server forgets it, and its weights unless others hold them.

        Does not wait. Samples that wait fail as `cancelled`, later calls raise NotFound. A client
        that came by pickle closes itself alone. Safe to repeat. Leaving a `with` block does the same.
        """
        is_open, self._is_closed = not self._is_closed, True
        if is_open and self._owns_sampler:
            self._finalizer.detach()
            with suppress(Disconnected):  # the session has ended, and takes its samplers with it
                self._session.request(
                    lambda number: CloseSampler(request_id=number, sampler_id=self.sampler_id),
                    read_result,
                )

    close_async = as_coroutine(close)

    def __enter__(self) -> "SamplingClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- a client is its own future ---------------------------------------------------------------

    def result(self, timeout: float | None = None) -> "SamplingClient":
        """The client itself: it was created before it was returned."""
        return self

    def __await__(self) -> Generator[Any, None, "SamplingClient"]:
        yield from ()
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        self._finalizer.detach()
        return (_restore, (self._session, self.sampler_id, self._card))

    def __repr__(self) -> str:
        return f"SamplingClient({self.sampler_id!r}, {self._card.name!r})"


def open_sampler(session: Session, *, base_model: str = "", model_path: str = "") -> SamplingClient:
    """Open a sampler on a base model or on saved weights, and wait for it.

    Raises:
        BadRequest: not exactly one of the two, or no such path.
        NotFound: no such model, or no such weights of the caller.
    """
    if bool(base_model) == bool(model_path):
        raise BadRequest("exactly one of model_path and base_model must be given")
    if model_path:
        parse_path(model_path)
    sampler_id = session.new_sampler_id()
    session.request(
        lambda number: CreateSampler(
            request_id=number, sampler_id=sampler_id, base_model=base_model, model_path=model_path
        ),
        read_result,
    ).result()
    name = base_model or session.query("sampler", sampler_id).result()["base_model"]
    return SamplingClient(session, sampler_id, session.find_card(name))


def _restore(session: Session, sampler_id: str, card: ModelCard) -> SamplingClient:
    return SamplingClient(session, sampler_id, card, owns_sampler=False)


def _check_params(params: SamplingParams, num_samples: int) -> None:
    require_type("sampling_params", params, SamplingParams, "SamplingParams")
    _check_int("num_samples", num_samples, 1, _MAX_SAMPLES)
    if params.max_tokens is not None:
        _check_int("max_tokens", params.max_tokens, 1, 2**31)
    if params.seed is not None:
        _check_int("seed", params.seed, -(2**63), 2**63 - 1)
    if params.top_k != -1:
        _check_int("top_k", params.top_k, 1, 2**31)
    for name, low, high in (("temperature", 0.0, float("inf")), ("top_p", 0.0, 1.0)):
        value = getattr(params, name)
        if not is_number(value) or not low <= value <= high:
            raise BadRequest(f"{name} is {shown(value)}, not a number from {low:g} to {high:g}")
    if params.top_p == 0:
        raise BadRequest("top_p is 0, which keeps no token")


def _check_int(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BadRequest(f"{name} is {value!r}, not an integer from {low} to {high}")


def _stops(
    stop: str | Sequence[str] | Sequence[int] | None, vocab_size: int
) -> tuple[list[int], list[str]]:
    """Stop tokens and stop strings; a list holds one or the other."""
    items: list[object] = [stop] if isinstance(stop, str) else list(stop or ())
    if len(items) > _MAX_STOPS:
        raise BadRequest(f"{len(items)} stops, at most {_MAX_STOPS}", "too_large")
    tokens = [item for item in items if isinstance(item, int) and not isinstance(item, bool)]
    strings = [item for item in items if isinstance(item, str)]
    if len(items) not in (len(tokens), len(strings)) or "" in strings:
        raise BadRequest("stop must be a string, strings or token ids, none of them empty")
    for token in tokens:
        _check_int("a stop token", token, 0, vocab_size - 1)
    return tokens, strings
