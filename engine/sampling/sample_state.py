"""Requests in work and their samples, whatever holds their tokens."""

from dataclasses import dataclass, field

import numpy as np

from .prompt_scoring import PromptScoring
from .requests import SampleDone, SampledSequence, SampleRequest
from .scoring import Scores
from .stopping import Stopping


@dataclass(slots=True, eq=False)
class Sample:
    """One continuation. The cache holds the prompt and all its tokens but the last."""

    index: int
    stream: int
    stopping: Stopping
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top_tokens: list[np.ndarray] = field(default_factory=list)  # of each token [k], when wanted
    top_logprobs: list[np.ndarray] = field(default_factory=list)
    is_started: bool = False  # admitted; before that it waits with its first token
    stop_reason: str = ""  # "" while it goes on


@dataclass(slots=True, eq=False)
class Active:
    """A request in work."""

    request: SampleRequest
    samples: list[Sample]
    num_open: int  # samples that go on
    scoring: PromptScoring  # what is wanted of the prompt
    is_prefilled: bool = False
    scores: list[Scores] = field(default_factory=list)  # of the rows that are computed

    def answer(self) -> SampleDone:
        """The answer, once all samples have ended."""
        wants_top = self.request.topk_sample_logprobs > 0
        sequences = [
            SampledSequence(
                np.array(sample.tokens, np.int32),
                np.array(sample.logprobs, np.float32),
                sample.stop_reason,
                np.stack(sample.top_tokens) if wants_top else None,
                np.stack(sample.top_logprobs) if wants_top else None,
            )
            for sample in self.samples
        ]
        prompt = self.scoring.arrays(Scores.join(self.scores))
        return SampleDone(self.request.key, tuple(sequences), prompt)


Holder = Active | Sample  # what holds tokens in a cache: a prompt, for its samples, or a sample
