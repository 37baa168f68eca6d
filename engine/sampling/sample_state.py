"""Requests in work: their samples, and the pages that prompts and samples hold."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from .kv_cache import KVCache
from .pages import Copy, PagePool, pages_for
from .requests import SampleDone, SampledSequence, SampleRequest
from .stopping import Stopping


@dataclass(slots=True, eq=False)
class Sample:
    """One continuation. Its pages hold the prompt and all its tokens but the last."""

    index: int
    stream: int
    stopping: Stopping
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    pages: list[int] = field(default_factory=list)
    is_started: bool = False  # admitted; before that it waits with its first token
    stop_reason: str = ""  # "" while it goes on


@dataclass(slots=True, eq=False)
class Active:
    """A request in work. Its pages hold the prompt until all samples have their own, or ended."""

    request: SampleRequest
    samples: list[Sample]
    num_open: int  # samples that go on
    pages: list[int] = field(default_factory=list)
    is_prefilled: bool = False
    prompt_logprobs: np.ndarray | None = None

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
        return SampleDone(self.request.key, tuple(sequences), self.prompt_logprobs)


class HeldPages:
    """Hands out the pages of a cache to prompts and samples, and takes them back."""

    def __init__(self, cache: KVCache) -> None:
        self.pool = PagePool(cache.num_pages, cache.page_size)
        self._cache = cache

    def begin(self, active: Active, num_tokens: int) -> None:
        """Give a prompt clean pages for its tokens."""
        active.pages = self.pool.allocate(pages_for(num_tokens, self.pool.page_size))
        self._cache.clear(active.pages)

    def fork(self, ready: Sequence[tuple[Active, Sample]]) -> None:
        """Give samples of prefilled prompts pages to go on with; an only sample takes them over."""
        copies: list[Copy] = []
        for active, sample in ready:
            if len(active.samples) == 1:
                sample.pages, active.pages = active.pages, []
                continue
            sample.pages, copy = self.pool.fork(active.pages, len(active.request.tokens))
            copies += [] if copy is None else [copy]
        self._cache.copy(copies)
        for active, _ in ready:
            self.release_prompt(active)

    def extend(self, running: Iterable[tuple[Sample, Active]]) -> None:
        """Give every running sample the page that its next token needs."""
        taken: list[int] = []
        for sample, active in running:
            num_cached = len(active.request.tokens) + len(sample.tokens) - 1
            if num_cached == len(sample.pages) * self.pool.page_size:
                sample.pages += self.pool.allocate(1)
                taken.append(sample.pages[-1])
        self._cache.clear(taken)

    def release(self, holder: Sample | Active) -> None:
        """Take back all pages of a sample or a prompt."""
        self.pool.release(holder.pages)
        holder.pages = []

    def release_prompt(self, active: Active) -> None:
        """Take back a prompt's own hold on its pages unless a sample has yet to start from them."""
        if all(sample.pages or sample.stop_reason for sample in active.samples):
            self.release(active)

    def check_integrity(self, requests: Iterable[Active]) -> None:
        """Raise AssertionError unless the pages in use are those that these requests hold."""
        held: list[list[int]] = []
        for active in requests:
            held += [active.pages, *(sample.pages for sample in active.samples)]
        self.pool.check_integrity(held)
