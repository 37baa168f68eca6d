"""Generate for many requests at once over a paged cache, and contain what goes wrong.

One step advances every running sample by a token and prefills what was admitted, whatever adapters
they use. A step that raises is repeated in halves, down to the piece that is to blame; only its
request fails.
"""

import logging
from collections.abc import Sequence

from ..adapters.store import AdapterStore
from ..model.base import BaseModel
from .admission import Admission, Prefill
from .base_generator import BaseGenerator, Outcome, Work, failure_of
from .costs import PageCosts
from .held_pages import HeldPages
from .kv_cache import KVCache
from .requests import SampleFailed
from .sample_runner import SampleRunner
from .sample_state import Active, Holder, Sample
from .sample_step import pack_pieces, plan_step
from .stopping import Decode

log = logging.getLogger(__name__)


class Generator(BaseGenerator):
    """Generates with a model that takes packed sequences.

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
        admission = Admission(
            capacity=cache.num_pages,
            costs=PageCosts(cache.page_size),
            max_sequences=max_sequences,
            step_tokens=step_tokens,
        )
        super().__init__(model, store, admission, decode)
        self._is_deterministic = is_deterministic
        self._runner = SampleRunner(model, store, cache, is_deterministic=is_deterministic)
        self._pages = HeldPages(cache)

    @property
    def num_rows_ahead(self) -> int:
        """About how many rows the next step computes, prompts included."""
        return self._admission.num_rows_ahead

    @property
    def memory(self) -> dict[str, tuple[int, int]]:
        """Pages of the cache."""
        pool = self._pages.pool
        return {"kv_pages": (pool.num_pages - pool.num_free, pool.num_pages)}

    def step(self) -> list[Outcome]:
        """Advance everything by one step; returns the requests that ended with it."""
        admitted = self._admission.next_step()
        work = [self._begin_prompt(prefill) for prefill in admitted.prefills]
        self._start_samples(admitted.starts)
        self._pages.extend(self._running.items())
        work += [
            self._decode_work(active, sample, self._pages.of(sample))
            for sample, active in self._running.items()
        ]
        outcomes: list[Outcome] = []
        self._run(work, outcomes)
        return outcomes

    def check_integrity(self) -> None:
        """Raise AssertionError unless the pages in use are those of the requests in work."""
        super().check_integrity()
        self._pages.check_integrity(self._active.values())
        pool = self._pages.pool
        assert pool.num_pages - pool.num_free <= self._admission.num_reserved

    def _begin_prompt(self, prefill: Prefill) -> Work:
        active = self._active[prefill.key]
        self._pages.begin(active, prefill.last)
        return self._prompt_work(active, prefill.first, prefill.last, self._pages.of(active))

    def _launch(self, ready: Sequence[tuple[Active, Sample]]) -> None:
        self._pages.fork(ready)
        for active, sample in ready:
            self._running[sample] = active

    def _release(self, holder: Holder) -> None:
        self._pages.release(holder)

    def _run(self, work: Sequence[Work], outcomes: list[Outcome]) -> None:
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
            self.num_failed_steps += 1
            failure = failure_of(work[0].active.request.key, error)
        if failure is None:
            self._commit(work, result, outcomes)
        elif len(work) == 1:
            self._fail(work[0].active, failure, outcomes)
        else:
            # The traceback, and with it the tensors of the failed step, is gone by now.
            self._run(work[: len(work) // 2], outcomes)
            self._run(work[len(work) // 2 :], outcomes)
