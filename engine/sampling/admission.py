"""Decide which prompts are prefilled and which samples start. Pure: counts of tokens and memory.

Requests are served in the order of their arrival. What starts has its worst case reserved, so a
running sample never lacks memory and always decodes; nothing behind a request that does not fit
overtakes it. The prompt of a request is prefilled once and its samples start from it, as many at a
time as fit. A later policy may prefill a prompt in pieces (`Prefill` has bounds), count shared
prefixes once, or reserve less and take samples back.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Protocol


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
    """This sample may take its memory and decode from now on (once its prompt is prefilled)."""

    key: Hashable
    sample: int


@dataclass(frozen=True, slots=True)
class Step:
    """What begins with the next step; all samples that have started decode in it besides."""

    prefills: tuple[Prefill, ...] = ()
    starts: tuple[Start, ...] = ()


class Costs(Protocol):
    """What requests take of a capacity."""

    @property
    def unit(self) -> str:
        """In what the capacity is counted."""

    def prompt(self, entry: Entry) -> int:
        """What the prompt takes, from its prefill to the end of the request."""

    def sample(self, entry: Entry) -> int:
        """What one sample takes at most beside the prompt."""

    def room(self, prompt_tokens: int, num_samples: int, capacity: int) -> int:
        """Tokens of a prompt and one of its samples that fit."""


@dataclass(slots=True)
class _Request:
    entry: Entry
    prompt_cost: int
    sample_cost: int
    is_prefilling: bool = False
    pending: list[int] = field(default_factory=list)  # samples not started, ascending
    running: set[int] = field(default_factory=set)


class Admission:
    """The queue of requests, and what the admitted ones have reserved.

    Args:
        capacity: of the cache, in units of `costs`.
        costs: what a prompt and a sample take.
        max_sequences: samples that may decode at the same time.
        step_tokens: rows of a step, prefill and decode together; one prompt longer than that is
            computed with no other prompt beside it.
    """

    def __init__(
        self, *, capacity: int, costs: Costs, max_sequences: int, step_tokens: int
    ) -> None:
        self.capacity = capacity
        self.costs = costs
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

    def room(self, prompt_tokens: int, num_samples: int) -> int:
        """Tokens of a prompt and one of its samples that fit when nothing else runs."""
        return self.costs.room(prompt_tokens, num_samples, self.capacity)

    def add(self, entry: Entry) -> None:
        """Queue a request, behind all others.

        Raises:
            ValueError: not even one sample fits into the capacity, or its key is in use.
        """
        prompt_cost, sample_cost = self.costs.prompt(entry), self.costs.sample(entry)
        needed = prompt_cost + sample_cost
        if needed > self.capacity:
            raise ValueError(f"{needed} {self.costs.unit} needed, there are {self.capacity}")
        if entry.key in self._requests:
            raise ValueError(f"{entry.key!r} is already in use")
        self._requests[entry.key] = _Request(
            entry,
            prompt_cost,
            sample_cost,
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
                if not self._fits(request.prompt_cost + request.sample_cost):
                    break
                room -= entry.prompt_tokens
                request.is_prefilling = True
                self.num_reserved += request.prompt_cost
                prefills.append(Prefill(entry.key, 0, entry.prompt_tokens))
            while request.pending and self._fits(request.sample_cost):
                sample = request.pending.pop(0)
                request.running.add(sample)
                self.num_reserved += request.sample_cost
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
            self.num_reserved -= request.sample_cost
            self.num_running -= 1
        else:
            request.pending.remove(sample)
        if not request.running and not request.pending:
            self.drop(key)

    def drop(self, key: Hashable) -> None:
        """Forget a request and all it has reserved."""
        request = self._requests.pop(key)
        self.num_reserved -= len(request.running) * request.sample_cost
        self.num_running -= len(request.running)
        if request.is_prefilling:
            self.num_reserved -= request.prompt_cost

    def _fits(self, cost: int) -> bool:
        has_room = self.num_reserved + cost <= self.capacity
        return has_room and self.num_running < self.max_sequences
