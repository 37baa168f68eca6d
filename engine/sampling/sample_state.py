"""Requests in work and their samples, whatever holds their tokens."""

from dataclasses import dataclass, field

import numpy as np

from .requests import SampleDone, SampledSequence, SampleRequest
from .stopping import Stopping


@dataclass(slots=True, eq=False)
class Sample:
    """One continuation. The cache holds the prompt and all its tokens but the last."""

    index: int
    stream: int
    stopping: Stopping
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    is_started: bool = False  # admitted; before that it waits with its first token
    stop_reason: str = ""  # "" while it goes on


@dataclass(slots=True, eq=False)
class Active:
    """A request in work."""

    request: SampleRequest
    samples: list[Sample]
    num_open: int  # samples that go on
    is_prefilled: bool = False
    scores: list[np.ndarray] = field(default_factory=list)  # prompt logprobs from its second token

    def answer(self) -> SampleDone:
        """The answer, once all samples have ended."""
        sequences = [
            SampledSequence(
                np.array(sample.tokens, np.int32),
                np.array(sample.logprobs, np.float32),
                sample.stop_reason,
            )
            for sample in self.samples
        ]
        prompt_logprobs = None
        if self.request.prompt_logprobs:
            prompt_logprobs = np.concatenate([np.array([np.nan], np.float32), *self.scores])
        return SampleDone(self.request.key, tuple(sequences), prompt_logprobs)


Holder = Active | Sample  # what holds tokens in a cache: a prompt, for its samples, or a sample
