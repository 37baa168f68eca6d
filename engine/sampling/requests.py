"""What the generator is asked and what it answers. Host records; no device, no model."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...client.errors import BadRequest
from ..adapters.store import WeightsVersion
from .prompt_targets import PromptTargets, check_tokens

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
    prompt_logprobs_last_n: int = 0  # and likeliest tokens, of the last n prompt tokens; 0: of all
    topk_prompt_logprobs: int = 0  # likeliest tokens to report in place of each prompt token
    topk_sample_logprobs: int = 0  # the same in place of each token that is drawn
    prompt_targets: PromptTargets | None = None
    prompt_alt_tokens_k: int = 0  # tokens to draw in place of each prompt token
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
            *(
                (getattr(self, name) >= 0, f"{name} is {getattr(self, name)}, below 0")
                for name in ("topk_prompt_logprobs", "topk_sample_logprobs", "prompt_alt_tokens_k")
            ),
            (
                0 <= self.prompt_logprobs_last_n < max(len(self.tokens), 1),
                f"prompt_logprobs_last_n is {self.prompt_logprobs_last_n} of a prompt of "
                f"{len(self.tokens)} tokens",
            ),
        )
        for is_met, complaint in rules:
            if not is_met:
                raise BadRequest(complaint)
        check_tokens("token", self.tokens, vocab_size)
        if self.prompt_targets is not None:
            self.prompt_targets.check(len(self.tokens), vocab_size)


@dataclass(frozen=True, slots=True, eq=False)
class SampledSequence:
    """One continuation; a stop token or what completed a stop string belongs to it."""

    tokens: np.ndarray  # int32
    logprobs: np.ndarray  # float32, see `sampler.draw`
    stop_reason: str  # "stop" or "length"
    top_tokens: np.ndarray | None = None  # int32 [tokens, k], the likeliest where each was drawn
    top_logprobs: np.ndarray | None = None  # float32 [tokens, k]


@dataclass(frozen=True, slots=True, eq=False)
class SampleDone:
    """All continuations of a request, in the order of their sample index."""

    key: Hashable
    sequences: tuple[SampledSequence, ...]
    prompt_arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    """What was asked about the prompt, by its name on the wire; see `messages.Reply`."""

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
        for name in ("tokens", "logprobs"):
            top = [getattr(sequence, f"top_{name}") for sequence in self.sequences]
            if top[0] is not None:
                arrays[f"topk_sample_{name}"] = np.concatenate(top)
        return arrays | dict(self.prompt_arrays)


@dataclass(frozen=True, slots=True)
class SampleFailed:
    """A request that ended without an answer; `code` is one of `errors.CODES`."""

    key: Hashable
    code: str
    detail: str
