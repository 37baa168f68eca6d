"""What all generators do with requests: take them in, take over what was drawn, end them.

A generator decides which tokens are computed when, and holds what their attention or recurrence
needs. Touched only by the compute thread.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...client.errors import BadRequest
from ..adapters.store import AdapterStore
from ..faults import is_out_of_memory
from ..model.base import BaseModel
from .admission import Admission, Entry, Start
from .prompt_scoring import PromptScoring
from .requests import SampleDone, SampleFailed, SampleRequest
from .sample_state import Active, Holder, Sample
from .sample_step import Piece
from .sampler import stream_of
from .step_result import PieceResult, StepResult
from .stopping import Decode, Stopping, StopStrings, max_new_tokens

log = logging.getLogger(__name__)

Outcome = SampleDone | SampleFailed


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """A piece of a step and whose it is; without a sample it is the prompt."""

    piece: Piece
    active: Active
    sample: Sample | None


class BaseGenerator(ABC):
    """All sample requests of one worker.

    Args:
        model: the base model.
        store: adapters; a request's version is retained until the request ends.
        admission: the queue, for nobody else.
        decode: a tokenizer's decode, needed for stop strings only.
    """

    def __init__(
        self, model: BaseModel, store: AdapterStore, admission: Admission, decode: Decode | None
    ) -> None:
        self._config = model.config
        self._store = store
        self._decode = decode
        self._admission = admission
        self._active: dict[Hashable, Active] = {}
        self._running: dict[Sample, Active] = {}  # in the order of their start
        self._stepped: set[Hashable] = set()
        self.num_prefilled = 0  # prompt tokens computed, of passes that succeeded
        self.num_decoded = 0  # tokens drawn by them
        self.num_failed_steps = 0  # passes that raised

    @property
    def has_work(self) -> bool:
        return bool(self._active)

    @property
    def num_active(self) -> int:
        """Samples that run now."""
        return len(self._running)

    @property
    @abstractmethod
    def num_rows_ahead(self) -> int:
        """About how many rows the largest forward pass of the next step has, prompts included."""

    @property
    @abstractmethod
    def memory(self) -> dict[str, tuple[int, int]]:
        """What the sequences use and what there is for them, in units that the name says."""

    def take_stepped(self) -> set[Hashable]:
        """Keys of the requests that anything was computed for since this was last asked."""
        stepped, self._stepped = self._stepped, set()
        return stepped

    @abstractmethod
    def step(self) -> list[Outcome]:
        """Advance everything by one step; returns the requests that ended with it."""

    def submit(self, request: SampleRequest) -> None:
        """Queue a request; it holds its weights version from now on.

        Raises:
            BadRequest: a value cannot be honoured, or it is too large for context or memory.
        """
        request.check(self._config.vocab_size)
        if request.stop_strings and self._decode is None:
            raise BadRequest("stop strings need a tokenizer, and this model came without one")
        num_prompt = len(request.tokens)
        room = self._admission.room(num_prompt, request.num_samples)
        room = min(self._config.max_context, room)
        max_new = max_new_tokens(num_prompt, request.max_tokens, room)
        self._admission.add(Entry(request.key, num_prompt, max_new, request.num_samples))
        samples = [
            Sample(index, stream_of(request.seed, index), self._stopping(request, max_new))
            for index in range(request.num_samples)
        ]
        if request.version is not None:
            self._store.retain(request.version)
        owned = replace(request, tokens=np.array(request.tokens, np.int64))
        self._active[request.key] = Active(owned, samples, len(samples), PromptScoring(owned))

    def cancel(self, key: Hashable) -> bool:
        """Forget a request, started or not; it has no outcome. False when it is not known."""
        if key not in self._active:
            return False
        self._forget(self._active[key])
        return True

    def check_integrity(self) -> None:
        """Raise AssertionError unless what is held is what the requests in work may hold."""
        assert len(self._admission) == len(self._active)
        assert all(each.request.key in self._active for each in self._running.values())

    # --- for a step

    @abstractmethod
    def _launch(self, ready: Sequence[tuple[Active, Sample]]) -> None:
        """Let samples of prefilled prompts run."""

    @abstractmethod
    def _release(self, holder: Holder) -> None:
        """Free what a prompt or a sample holds, if anything."""

    def _start_samples(self, starts: Sequence[Start]) -> None:
        """Let samples run: at once, or as soon as their prompt is prefilled."""
        ready: list[tuple[Active, Sample]] = []
        for start in starts:
            active = self._active[start.key]
            sample = active.samples[start.sample]
            sample.is_started = True
            if active.is_prefilled:
                ready.append((active, sample))
        self._launch(ready)

    def _prompt_work(self, active: Active, first: int, last: int, pages: Sequence[int]) -> Work:
        """Compute tokens first..last - 1 of a prompt; all samples draw after its last one."""
        request = active.request
        is_last = last == len(request.tokens)
        piece = Piece(
            version=request.version,
            tokens=request.tokens[first:last],
            cached=first,
            pages=pages,
            settings=(request.temperature, request.top_k, request.top_p),
            streams=tuple(sample.stream for sample in active.samples) if is_last else (),
            position=0,
            top=request.topk_sample_logprobs,
            scoring=active.scoring.between(first, last),
        )
        return Work(piece, active, None)

    def _decode_work(self, active: Active, sample: Sample, pages: Sequence[int]) -> Work:
        """Compute the last token of a sample, which draws the next."""
        request = active.request
        piece = Piece(
            version=request.version,
            tokens=np.array(sample.tokens[-1:]),
            cached=len(request.tokens) + len(sample.tokens) - 1,
            pages=pages,
            settings=(request.temperature, request.top_k, request.top_p),
            streams=(sample.stream,),
            position=len(sample.tokens),
            top=request.topk_sample_logprobs,
        )
        return Work(piece, active, sample)

    def _commit(self, work: Sequence[Work], result: StepResult, outcomes: list[Outcome]) -> None:
        """Take over what the pieces of a step drew."""
        self._count(work)
        dealt = result.deal([each.piece for each in work])
        for each, found in zip(work, dealt, strict=True):
            key = each.active.request.key
            if key not in self._active:
                continue
            if not found.is_finite:
                detail = "logits are not finite under these weights"
                self._fail(each.active, SampleFailed(key, "non_finite", detail), outcomes)
                continue
            try:
                self._take_over(each, found)
            except Exception as error:  # the tokenizer is not ours
                log.warning("stop strings could not be looked for", exc_info=True)
                self._fail(each.active, failure_of(key, error), outcomes)
        self._launch(
            [
                (each.active, sample)
                for each in work
                if each.sample is None
                and each.active.is_prefilled
                and each.active.request.key in self._active
                for sample in each.active.samples
                if sample.is_started and not sample.stop_reason
            ]
        )
        for each in work:
            if each.active.num_open == 0 and each.active.request.key in self._active:
                self._close(each.active)
                outcomes.append(each.active.answer())

    def _count(self, work: Sequence[Work]) -> None:
        for each in work:
            self._stepped.add(each.active.request.key)
            self.num_decoded += len(each.piece.streams)
            if each.sample is None:
                self.num_prefilled += len(each.piece.tokens)

    # --- the end of a request

    def _fail(self, active: Active, failure: SampleFailed, outcomes: list[Outcome]) -> None:
        self._forget(active)
        outcomes.append(failure)

    def _take_over(self, each: Work, found: PieceResult) -> None:
        """Append what one piece drew."""
        active = each.active
        if each.sample is None:
            if found.scores is not None:
                active.scores.append(found.scores)
            active.is_prefilled = bool(each.piece.streams)
        samples = active.samples[: len(found.tokens)] if each.sample is None else [each.sample]
        for draw, sample in enumerate(samples):
            if active.request.topk_sample_logprobs:
                sample.top_tokens.append(found.top_tokens[draw])
                sample.top_logprobs.append(found.top_logprobs[draw])
            self._append(active, sample, found.tokens[draw], found.logprobs[draw])

    def _append(self, active: Active, sample: Sample, token: int, logprob: float) -> None:
        sample.tokens.append(token)
        sample.logprobs.append(logprob)
        sample.stop_reason = sample.stopping.push(token)
        if sample.stop_reason:
            active.num_open -= 1
            self._running.pop(sample, None)
            self._release(sample)
            self._admission.end_sample(active.request.key, sample.index)

    def _forget(self, active: Active) -> None:
        """Release everything of a request that does not end well."""
        self._close(active)
        self._admission.drop(active.request.key)

    def _close(self, active: Active) -> None:
        del self._active[active.request.key]
        for sample in active.samples:
            self._running.pop(sample, None)
            self._release(sample)
        self._release(active)
        if active.request.version is not None:
            self._store.release(active.request.version)

    def _stopping(self, request: SampleRequest, max_new: int) -> Stopping:
        strings = None
        if request.stop_strings and self._decode is not None:
            strings = StopStrings(request.stop_strings, self._decode)
        return Stopping(request.stop_tokens, max_new, strings)


def failure_of(key: Hashable, error: Exception) -> SampleFailed:
    """What a request is told that failed even in a step of its own."""
    if is_out_of_memory(error):
        return SampleFailed(key, "out_of_memory", "the request does not fit, even alone")
    return SampleFailed(key, "internal", f"a step failed: {type(error).__name__}: {error}")
