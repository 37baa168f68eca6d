"""The client of one set of weights to sample from."""

import weakref
from collections.abc import Generator, Sequence
from contextlib import suppress
from typing import Any

from .actions import AnswerPart
from .answers import read_result
from .errors import BadRequest, Disconnected, NotFound
from .futures import APIFuture, as_coroutine, awaited
from .messages import CloseSampler, CreateSampler, ModelCard
from .paths import parse_path
from .sample_answers import read_samples
from .sample_call import build_sample
from .session import Session
from .tensor_data import TensorData
from .tokenizers import load_tokenizer
from .types import ModelInput, SampleResponse, SamplingParams


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
        target_prompt_logprobs: TensorData | None = None,
        prompt_alt_tokens_k: int = 0,
        prompt_logprobs_last_n: int | None = None,
    ) -> APIFuture[SampleResponse]:
        """Draw continuations of a prompt, and score its tokens and others in their place.

        Log-probabilities of drawn tokens are those of the distribution after temperature and before
        top_k and top_p; those of temperature 0, and all of the prompt, are of temperature 1. Sample
        i of a seed is the same whatever else is drawn or asked for.

        Args:
            prompt: at least one token.
            num_samples: continuations, each from a random stream of its own.
            sampling_params: how to draw.
            include_prompt_logprobs: also score the prompt.
            topk_prompt_logprobs: also find so many of the likeliest tokens in place of each prompt
                token after the first; 0 none.
            topk_sample_logprobs: the same in place of each token that is drawn.
            target_prompt_logprobs: token ids [prompt - 1, K], dense or CSR, of which row i is
                scored in place of prompt token i + 1; -1 skips a cell.
            prompt_alt_tokens_k: also draw so many tokens, with the temperature alone, in place of
                each prompt token after the first; 0 none.
            prompt_logprobs_last_n: of prompt_logprobs and topk_prompt_logprobs only those of the
                last n tokens, with include_prompt_logprobs; None all.

        Raises:
            BadRequest: something in the call cannot be; nothing was sent.
        """
        if self._is_closed:
            raise NotFound(f"sampler {self.sampler_id!r} was closed")
        call = build_sample(
            prompt,
            num_samples,
            sampling_params,
            card=self._card,
            sampler_id=self.sampler_id,
            request_id=self._session.connection.new_request_id(),
            include_prompt_logprobs=include_prompt_logprobs,
            topk_prompt_logprobs=topk_prompt_logprobs,
            topk_sample_logprobs=topk_sample_logprobs,
            target_prompt_logprobs=target_prompt_logprobs,
            prompt_alt_tokens_k=prompt_alt_tokens_k,
            prompt_logprobs_last_n=prompt_logprobs_last_n,
        )

        def convert(parts: Sequence[AnswerPart], keep: object = self) -> SampleResponse:
            # `keep` holds the sampler open until then.
            return read_samples(parts, call)

        return self._session.connection.send([call.header], [call.frames], convert)

    def compute_logprobs(
        self, prompt: ModelInput, prompt_logprobs_last_n: int | None = None
    ) -> APIFuture[list[float | None]]:
        """Score a prompt: the log-probability of each token given those before it, None first.

        Args:
            prompt: at least one token.
            prompt_logprobs_last_n: score only the last n tokens, the others are None too.
        """
        response = self.sample(
            prompt,
            1,
            SamplingParams(max_tokens=1, seed=0),
            include_prompt_logprobs=True,
            prompt_logprobs_last_n=prompt_logprobs_last_n,
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
