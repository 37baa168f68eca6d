"""Generate for many requests at once: admission, pages, steps, results, and what goes wrong.

One step advances every running sample by a token and prefills what was admitted, whatever adapters
they use. A step that raises is repeated in halves, down to the piece that is to blame; only its
request fails. Touched only by the compute thread.
"""

import logging
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...client.errors import BadRequest
from ..adapters.store import AdapterStore
from ..faults import is_out_of_memory
from ..model.base import BaseModel
from .admission import Admission, Entry, Prefill, Start
from .kv_cache import KVCache
from .requests import SampleDone, SampledSequence, SampleFailed, SampleRequest
from .sample_runner import SampleRunner, StepResult
from .sample_state import Active, HeldPages, Sample
from .sample_step import Piece, pack_pieces, plan_step
from .sampler import stream_of
from .stopping import Decode, Stopping, StopStrings, max_new_tokens

__all__ = ["Generator", "SampleDone", "SampleFailed", "SampleRequest", "SampledSequence"]

log = logging.getLogger(__name__)

Outcome = SampleDone | SampleFailed


@dataclass(frozen=True, slots=True, eq=False)
class _Work:
    """A piece of a step and whose it is; without a sample it is the prompt."""

    piece: Piece
    active: Active
    sample: Sample | None


class Generator:
    """All sample requests of one worker.

    Args:
        model: the base model.
        store: adapters; a request's version is retained until the request ends.
        cache: pages of keys and values, used by nobody else.
        decode: a tokenizer's decode, needed for stop strings only.
        max_sequences: samples that run at the same time.
        step_tokens: rows of a step; see `Admission`.
        is_deterministic: a sample's numbers must not depend on what else is in its steps.
    """

    def __init__(
        self,
        model: BaseModel,
        store: AdapterStore,
        cache: KVCache,
        *,
        decode: Decode | None = None,
        max_sequences: int = 128,
        step_tokens: int = 2048,
        is_deterministic: bool = False,
    ) -> None:
        self._config = model.config
        self._store = store
        self._cache = cache
        self._decode = decode
        self._is_deterministic = is_deterministic
        self._runner = SampleRunner(model, store, cache, is_deterministic=is_deterministic)
        self._pages = HeldPages(cache)
        self._admission = Admission(
            num_pages=cache.num_pages,
            page_size=cache.page_size,
            max_sequences=max_sequences,
            step_tokens=step_tokens,
        )
        self._active: dict[Hashable, Active] = {}
        self._running: dict[Sample, Active] = {}  # in the order of their start

    @property
    def has_work(self) -> bool:
        return bool(self._active)

    @property
    def num_active(self) -> int:
        """Samples that run now, each a row of the next step."""
        return len(self._running)

    @property
    def num_rows_ahead(self) -> int:
        """About how many rows the next step computes, prompts included."""
        return self._admission.num_rows_ahead

    def submit(self, request: SampleRequest) -> None:
        """Queue a request; it holds its weights version from now on.

        Raises:
            BadRequest: a value cannot be honoured, or it is too large for context or cache.
        """
        request.check(self._config.vocab_size)
        if request.stop_strings and self._decode is None:
            raise BadRequest("stop strings need a tokenizer, and this model came without one")
        num_prompt, num_pages = len(request.tokens), self._cache.num_pages
        if request.num_samples > 1:
            num_pages -= 1  # for a copy of the prompt's last page
        room = min(self._config.max_context, num_pages * self._cache.page_size)
        max_new = max_new_tokens(num_prompt, request.max_tokens, room)
        self._admission.add(Entry(request.key, num_prompt, max_new, request.num_samples))
        samples = [
            Sample(index, stream_of(request.seed, index), self._stopping(request, max_new))
            for index in range(request.num_samples)
        ]
        if request.version is not None:
            self._store.retain(request.version)
        owned = replace(request, tokens=np.array(request.tokens, np.int64))
        self._active[request.key] = Active(owned, samples, len(samples))

    def cancel(self, key: Hashable) -> bool:
        """Forget a request, started or not; it has no outcome. False when it is not known."""
        if key not in self._active:
            return False
        self._forget(self._active[key])
        return True

    def step(self) -> list[Outcome]:
        """Advance everything by one step; returns the requests that ended with it."""
        admitted = self._admission.next_step()
        work: list[_Work] = []
        for prefill in admitted.prefills:
            work.append(self._begin_prompt(prefill))
        self._start_samples(admitted.starts)
        self._pages.extend(self._running.items())
        work += [self._decode_work(active, sample) for sample, active in self._running.items()]
        outcomes: list[Outcome] = []
        self._run(work, outcomes)
        return outcomes

    def check_integrity(self) -> None:
        """Raise AssertionError unless the pages in use are those of the requests in work."""
        self._pages.check_integrity(self._active.values())
        assert len(self._admission) == len(self._active)
        pool = self._pages.pool
        assert pool.num_pages - pool.num_free <= self._admission.num_reserved

    # --- before a step

    def _stopping(self, request: SampleRequest, max_new: int) -> Stopping:
        strings = None
        if request.stop_strings and self._decode is not None:
            strings = StopStrings(request.stop_strings, self._decode)
        return Stopping(request.stop_tokens, max_new, strings)

    def _begin_prompt(self, prefill: Prefill) -> _Work:
        active = self._active[prefill.key]
        request = active.request
        self._pages.begin(active, prefill.last)
        piece = Piece(
            version=request.version,
            tokens=request.tokens[prefill.first : prefill.last],
            cached=prefill.first,
            pages=active.pages,
            settings=(request.temperature, request.top_k, request.top_p),
            streams=tuple(sample.stream for sample in active.samples),
            position=0,
            is_scored=request.prompt_logprobs,
        )
        return _Work(piece, active, None)

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

    def _launch(self, ready: Sequence[tuple[Active, Sample]]) -> None:
        """Let samples of prefilled prompts run."""
        self._pages.fork(ready)
        for active, sample in ready:
            self._running[sample] = active

    def _decode_work(self, active: Active, sample: Sample) -> _Work:
        request = active.request
        piece = Piece(
            version=request.version,
            tokens=np.array(sample.tokens[-1:]),
            cached=len(request.tokens) + len(sample.tokens) - 1,
            pages=sample.pages,
            settings=(request.temperature, request.top_k, request.top_p),
            streams=(sample.stream,),
            position=len(sample.tokens),
        )
        return _Work(piece, active, sample)

    # --- a step

    def _run(self, work: Sequence[_Work], outcomes: list[Outcome]) -> None:
        """Compute some of a step's work; what fails together is tried apart."""
        work = [each for each in work if each.active.request.key in self._active]
        if not work:
            return
        by_piece = {each.piece: each for each in work}
        failure: SampleFailed | None = None
        try:
            versions, pieces = pack_pieces([each.piece for each in work])
            work = [by_piece[piece] for piece in pieces]
            step = plan_step(pieces, is_deterministic=self._is_deterministic)
            result = self._runner.run(step, versions)
        except Exception as error:
            log.warning("a sample step of %d pieces failed", len(work), exc_info=True)
            failure = _failure(work[0].active.request.key, error)
        if failure is None:
            self._commit(work, result, outcomes)
        elif len(work) == 1:
            self._forget(work[0].active)
            outcomes.append(failure)
        else:
            # The traceback, and with it the tensors of the failed step, is gone by now.
            self._run(work[: len(work) // 2], outcomes)
            self._run(work[len(work) // 2 :], outcomes)

    def _commit(self, work: Sequence[_Work], result: StepResult, outcomes: list[Outcome]) -> None:
        """Take over what a step drew."""
        tokens, logprobs = result.tokens_M.tolist(), result.logprobs_M.tolist()
        is_finite = np.isfinite(result.logprobs_M).tolist()
        first_draw = first_score = 0
        for each in work:
            draws = slice(first_draw, first_draw + len(each.piece.streams))
            scored = slice(first_score, first_score + each.piece.num_scores)
            first_draw, first_score = draws.stop, scored.stop
            key, scores = each.active.request.key, result.scores_R[scored]
            if key not in self._active:
                continue
            if all(is_finite[draws]) and (not len(scores) or np.isfinite(scores).all()):
                failure = self._take_over(each, tokens[draws], logprobs[draws], scores)
            else:
                detail = "logits are not finite under these weights"
                failure = SampleFailed(key, "non_finite", detail)
            if failure is not None:
                self._forget(each.active)
                outcomes.append(failure)
        self._launch(
            [
                (each.active, sample)
                for each in work
                if each.sample is None and each.active.request.key in self._active
                for sample in each.active.samples
                if sample.is_started and not sample.stop_reason
            ]
        )
        for each in work:
            if each.active.num_open == 0:
                outcomes += self._finish(each.active)

    def _take_over(
        self, each: _Work, tokens: list[int], logprobs: list[float], scores: np.ndarray
    ) -> SampleFailed | None:
        """Append what one piece drew; says why its request fails, if it does."""
        active = each.active
        samples = active.samples if each.sample is None else [each.sample]
        try:
            for sample, token, logprob in zip(samples, tokens, logprobs, strict=True):
                self._append(active, sample, token, logprob)
        except Exception as error:  # the tokenizer is not ours
            log.warning("stop strings could not be looked for", exc_info=True)
            return _failure(active.request.key, error)
        if each.sample is None:
            active.is_prefilled = True
            if active.request.prompt_logprobs:
                active.prompt_logprobs = np.append(np.float32(np.nan), scores)
            self._pages.release_prompt(active)
        return None

    def _append(self, active: Active, sample: Sample, token: int, logprob: float) -> None:
        sample.tokens.append(token)
        sample.logprobs.append(logprob)
        sample.stop_reason = sample.stopping.push(token)
        if sample.stop_reason:
            active.num_open -= 1
            self._running.pop(sample, None)
            self._pages.release(sample)
            self._admission.end_sample(active.request.key, sample.index)

    # --- the end of a request

    def _finish(self, active: Active) -> list[Outcome]:
        if active.request.key not in self._active:
            return []
        del self._active[active.request.key]
        if active.request.version is not None:
            self._store.release(active.request.version)
        return [active.answer()]

    def _forget(self, active: Active) -> None:
        """Release everything of a request that does not end well."""
        del self._active[active.request.key]
        for sample in active.samples:
            self._running.pop(sample, None)
            self._pages.release(sample)
        self._pages.release(active)
        self._admission.drop(active.request.key)
        if active.request.version is not None:
            self._store.release(active.request.version)


def _failure(key: Hashable, error: Exception) -> SampleFailed:
    """What a request is told that failed even in a step of its own."""
    if is_out_of_memory(error):
        return SampleFailed(key, "out_of_memory", "the request does not fit, even alone")
    return SampleFailed(key, "internal", f"a step failed: {type(error).__name__}: {error}")
