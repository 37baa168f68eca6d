"""Decide which prompts are prefilled and which samples start. Pure: counts of tokens and pages.

Requests are served in the order of their arrival. What starts has its worst case reserved, so a
running sample never lacks a page and always decodes; nothing behind a request that does not fit
overtakes it. The prompt of a request is prefilled once and its samples start from it, as many at a
time as fit. A later policy may prefill a prompt in pieces (`Prefill` has bounds), count shared
prefixes once, or reserve less and take samples back.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field

from .pages import pages_for


@dataclass(frozen=True, slots=True)
class Entry:
    """What admission needs to know about one request."""

    key: Hashable
    prompt_tokens: int
    max_new_tokens: int  # the first is drawn by the prefill, the last is never fed
    num_samples: int


@dataclass(frozen=True, slots=True)
class Prefill:
    """Compute prompt tokens first..last - 1 of a request."""

    key: Hashable
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Start:
    """This sample may take its pages and decode from now on (once its prompt is prefilled)."""

    key: Hashable
    sample: int


@dataclass(frozen=True, slots=True)
class Step:
    """What begins with the next step; all samples that have started decode in it besides."""

    prefills: tuple[Prefill, ...] = ()
    starts: tuple[Start, ...] = ()


@dataclass(slots=True)
class _Request:
    entry: Entry
    prompt_pages: int
    sample_pages: int
    is_prefilling: bool = False
    pending: list[int] = field(default_factory=list)  # samples not started, ascending
    running: set[int] = field(default_factory=set)


class Admission:
    """The queue of requests, and what the admitted ones have reserved.

    Args:
        num_pages: pages of the cache.
        page_size: tokens of a page.
        max_sequences: samples that may decode at the same time.
        step_tokens: rows of a step, prefill and decode together; one prompt longer than that is
            computed with no other prompt beside it.
    """

    def __init__(
        self, *, num_pages: int, page_size: int, max_sequences: int, step_tokens: int
    ) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self.max_sequences = max_sequences
        self.step_tokens = step_tokens
        self.num_reserved = 0
        self.num_running = 0
        self._requests: dict[Hashable, _Request] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._requests

    @property
    def num_rows_ahead(self) -> int:
        """About how many rows the next step has: running samples and the prompts behind them."""
        rows = self.num_running
        for request in self._requests.values():
            if rows >= self.step_tokens:
                break
            if not request.is_prefilling:
                rows += request.entry.prompt_tokens
        return rows

    def pages_needed(self, entry: Entry) -> int:
        """Return the pages without which not even one sample of the request can run."""
        return pages_for(entry.prompt_tokens, self.page_size) + self._sample_pages(entry)

    def add(self, entry: Entry) -> None:
        """Queue a request, behind all others.

        Raises:
            ValueError: it needs more pages than there are, or its key is in use.
        """
        needed = self.pages_needed(entry)
        if needed > self.num_pages:
            raise ValueError(f"{needed} pages needed, the cache has {self.num_pages}")
        if entry.key in self._requests:
            raise ValueError(f"{entry.key!r} is already in use")
        self._requests[entry.key] = _Request(
            entry,
            pages_for(entry.prompt_tokens, self.page_size),
            self._sample_pages(entry),
            pending=list(range(entry.num_samples)),
        )

    def next_step(self) -> Step:
        """Reserve what can begin now and return it."""
        prefills: list[Prefill] = []
        starts: list[Start] = []
        room = self.step_tokens - self.num_running
        for request in self._requests.values():
            entry = request.entry
            if not request.is_prefilling:
                if entry.prompt_tokens > room and prefills:
                    break
                if not self._fits(request.prompt_pages + request.sample_pages):
                    break
                room -= entry.prompt_tokens
                request.is_prefilling = True
                self.num_reserved += request.prompt_pages
                prefills.append(Prefill(entry.key, 0, entry.prompt_tokens))
            while request.pending and self._fits(request.sample_pages):
                sample = request.pending.pop(0)
                request.running.add(sample)
                self.num_reserved += request.sample_pages
                self.num_running += 1
                starts.append(Start(entry.key, sample))
            if request.pending:
                break
        return Step(tuple(prefills), tuple(starts))

    def end_sample(self, key: Hashable, sample: int) -> None:
        """Note that a sample needs nothing any more, started or not.

        The request is forgotten with the last of its samples.
        """
        request = self._requests[key]
        if sample in request.running:
            request.running.remove(sample)
            self.num_reserved -= request.sample_pages
            self.num_running -= 1
        else:
            request.pending.remove(sample)
        if not request.running and not request.pending:
            self.drop(key)

    def drop(self, key: Hashable) -> None:
        """Forget a request and all it has reserved."""
        request = self._requests.pop(key)
        self.num_reserved -= len(request.running) * request.sample_pages
        self.num_running -= len(request.running)
        if request.is_prefilling:
            self.num_reserved -= request.prompt_pages

    def _fits(self, num_pages: int) -> bool:
        has_pages = self.num_reserved + num_pages <= self.num_pages
        return has_pages and self.num_running < self.max_sequences

    def _sample_pages(self, entry: Entry) -> int:
        """Pages of one sample beyond the prompt's full ones; an only sample takes the last over."""
        if entry.max_new_tokens == 1:
            return 0
        total = pages_for(entry.prompt_tokens + entry.max_new_tokens - 1, self.page_size)
        if entry.num_samples == 1:
            return total - pages_for(entry.prompt_tokens, self.page_size)
        return total - entry.prompt_tokens // self.page_size
