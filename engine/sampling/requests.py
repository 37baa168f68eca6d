"""What the generator is asked and what it answers. Host records; no device, no model."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...client.errors import BadRequest
from ..adapters.store import WeightsVersion

MIN_TEMPERATURE = 1e-6  # below it, but for 0, tempered logits leave the range of float32


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SampleRequest:
    """Continuations of one prompt to be drawn."""

    key: Hashable  # chosen by the caller; names the request in outcomes
    tokens: np.ndarray  # the prompt, integers
    num_samples: int
    max_tokens: int  # new tokens of a sample; -1: as many as the context and the cache hold
    temperature: float  # 0 takes the likeliest token
    top_k: int = -1  # -1: off
    top_p: float = 1.0  # 1: off
    seed: int  # sample i draws from a stream of its own that depends on seed and i alone
    stop_tokens: frozenset[int] = frozenset()  # all of them, the model's own included
    stop_strings: tuple[str, ...] = ()
    prompt_logprobs: bool = False
    version: WeightsVersion | None = None  # None: the bare base model

    def check(self, vocab_size: int) -> None:
        """Raise BadRequest, naming the field, unless every value is one that can be honoured."""
        rules = (
            (len(self.tokens) > 0, "the prompt is empty"),
            (self.num_samples >= 1, f"num_samples is {self.num_samples}, not at least 1"),
            (self.max_tokens >= 1 or self.max_tokens == -1, f"max_tokens is {self.max_tokens}"),
            (
                self.temperature == 0 or MIN_TEMPERATURE <= self.temperature < float("inf"),
                f"temperature is {self.temperature}, neither 0 nor at least {MIN_TEMPERATURE}",
            ),
            (self.top_k >= 1 or self.top_k == -1, f"top_k is {self.top_k}, not -1 or at least 1"),
            (0 < self.top_p <= 1, f"top_p is {self.top_p}, not above 0 and at most 1"),
            (all(self.stop_strings), "a stop string is empty"),
        )
        for is_met, complaint in rules:
            if not is_met:
                raise BadRequest(complaint)
        for token in (int(self.tokens.min()), int(self.tokens.max())):
            if not 0 <= token < vocab_size:
                raise BadRequest(f"token {token} is outside 0 .. {vocab_size - 1}")


@dataclass(frozen=True, slots=True, eq=False)
class SampledSequence:
    """One continuation; a stop token or what completed a stop string belongs to it."""

    tokens: np.ndarray  # int32
    logprobs: np.ndarray  # float32, see `sampler.draw`
    stop_reason: str  # "stop" or "length"


@dataclass(frozen=True, slots=True, eq=False)
class SampleDone:
    """All continuations of a request, in the order of their sample index."""

    key: Hashable
    sequences: tuple[SampledSequence, ...]
    prompt_logprobs: np.ndarray | None = None  # float32 [prompt], at temperature 1, NaN first

    @property
    def num_new_tokens(self) -> int:
        return sum(len(sequence.tokens) for sequence in self.sequences)

    def result(self) -> dict[str, Any]:
        """The plain values of the answer on the wire."""
        return {"stop_reasons": [sequence.stop_reason for sequence in self.sequences]}

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays of the answer on the wire: sequences one after the other."""
        lengths = [len(sequence.tokens) for sequence in self.sequences]
        arrays = {
            "tokens": np.concatenate([sequence.tokens for sequence in self.sequences]),
            "lengths": np.array(lengths, np.int32),
            "logprobs": np.concatenate([sequence.logprobs for sequence in self.sequences]),
        }
        if self.prompt_logprobs is not None:
            arrays["prompt_logprobs"] = self.prompt_logprobs
        return arrays


@dataclass(frozen=True, slots=True)
class SampleFailed:
    """A request that ended without an answer; `code` is one of `errors.CODES`."""

    key: Hashable
    code: str
    detail: str
