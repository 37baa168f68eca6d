"""What sampling gives: the continuations of a prompt, and what was asked about its tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .tensor_data import NumpyArray, TensorData, to_array

StopReason = Literal["length", "stop"]

PAD_LOGPROB = -99999.0  # of a place without a token, whose id is 0


@dataclass(frozen=True, slots=True, eq=False)
class TopkLogprobs:
    """The likeliest tokens at each position, the likeliest first.

    A place without a token, of a position that was not scored or beyond the vocabulary, has id 0
    and log-probability -99999.0.
    """

    token_ids: NumpyArray  # [positions, k] int32
    logprobs: NumpyArray  # [positions, k] float32

    def to_lists(self) -> list[list[tuple[int, float]] | None]:
        """Pairs of id and log-probability at each position; None where there is none."""
        is_token = (self.token_ids != 0) | (self.logprobs != PAD_LOGPROB)
        counts = is_token.sum(1).tolist()
        rows = zip(self.token_ids.tolist(), self.logprobs.tolist(), counts, strict=True)
        return [
            list(zip(ids[:count], logprobs[:count], strict=True)) if count else None
            for ids, logprobs, count in rows
        ]


@dataclass(frozen=True, slots=True, eq=False)
class PromptAltTokens:
    """Tokens drawn in place of each prompt token from the second on.

    Row i holds k draws, with replacement and at the request's temperature, from the distribution
    of prompt token i + 1.
    """

    tokens: TensorData  # [prompt - 1, k] int64
    logprobs: TensorData  # [prompt - 1, k] float32, at temperature 1 as prompt_logprobs


class SampledSequence:
    """One continuation. A stop token that ended it is its last token."""

    __slots__ = ("logprobs_np", "sequence_id", "stop_reason", "tokens_np", "topk_logprobs_np")

    stop_reason: StopReason
    tokens_np: NumpyArray
    logprobs_np: NumpyArray | None
    sequence_id: str
    topk_logprobs_np: TopkLogprobs | None

    def __init__(
        self,
        *,
        stop_reason: StopReason,
        tokens: "Sequence[int] | NumpyArray",
        logprobs: "Sequence[float] | NumpyArray | None" = None,
        sequence_id: str = "",
        topk_logprobs: TopkLogprobs | None = None,
    ) -> None:
        self.stop_reason = stop_reason
        self.tokens_np = to_array(tokens, "int64")
        self.logprobs_np = None if logprobs is None else to_array(logprobs, "float32")
        self.sequence_id = sequence_id
        self.topk_logprobs_np = topk_logprobs

    @property
    def tokens(self) -> list[int]:
        values: list[int] = self.tokens_np.tolist()
        return values

    @property
    def logprobs(self) -> list[float] | None:
        """Of each token under the tempered distribution, before top_k and top_p."""
        if self.logprobs_np is None:
            return None
        values: list[float] = self.logprobs_np.tolist()
        return values

    @property
    def topk_logprobs(self) -> list[list[tuple[int, float]] | None] | None:
        """The likeliest tokens of the same distribution where each token was drawn."""
        return None if self.topk_logprobs_np is None else self.topk_logprobs_np.to_lists()

    def __repr__(self) -> str:
        return f"SampledSequence({len(self.tokens_np)} tokens, {self.stop_reason!r})"


class SampleResponse:
    """All continuations of one prompt; what was not asked for is None."""

    __slots__ = (
        "prompt_alt_tokens",
        "prompt_logprobs_np",
        "sequences",
        "target_prompt_logprobs",
        "topk_prompt_logprobs_np",
    )

    sequences: list[SampledSequence]
    prompt_logprobs_np: NumpyArray | None  # NaN where nothing was scored, as first
    topk_prompt_logprobs_np: TopkLogprobs | None  # of each prompt token
    target_prompt_logprobs: TensorData | None  # laid out as in the call; 0 where that has -1
    prompt_alt_tokens: PromptAltTokens | None

    def __init__(
        self,
        *,
        sequences: list[SampledSequence],
        prompt_logprobs: NumpyArray | None = None,
        topk_prompt_logprobs: TopkLogprobs | None = None,
        target_prompt_logprobs: TensorData | None = None,
        prompt_alt_tokens: PromptAltTokens | None = None,
    ) -> None:
        self.sequences = sequences
        self.prompt_logprobs_np = prompt_logprobs
        self.topk_prompt_logprobs_np = topk_prompt_logprobs
        self.target_prompt_logprobs = target_prompt_logprobs
        self.prompt_alt_tokens = prompt_alt_tokens

    @property
    def prompt_logprobs(self) -> list[float | None] | None:
        """Of each prompt token given those before it; None for the first and where not asked."""
        if self.prompt_logprobs_np is None:
            return None
        return [None if value != value else value for value in self.prompt_logprobs_np.tolist()]

    @property
    def topk_prompt_logprobs(self) -> list[list[tuple[int, float]] | None] | None:
        """The likeliest tokens in place of each prompt token; None as in `prompt_logprobs`."""
        if self.topk_prompt_logprobs_np is None:
            return None
        return self.topk_prompt_logprobs_np.to_lists()

    def __repr__(self) -> str:
        return f"SampleResponse({self.sequences!r})"
