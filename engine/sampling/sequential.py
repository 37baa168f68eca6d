"""Generate with a model that cannot be packed: each sequence has a state and a pass of its own.

L tokens of one sequence, D model width.
"""

import logging
from collections.abc import Sequence

import numpy as np
import torch

from ..adapters.store import AdapterStore
from ..adapters.targets import LAYERS
from ..model.base import SequentialModel
from .admission import Admission
from .base_generator import BaseGenerator, Outcome, Work, failure_of
from .bindings import Bindings
from .costs import StateCosts
from .held_states import HeldStates
from .requests import SampleFailed
from .rotation import Rotation, Turn
from .sample_head import SampleHead
from .sample_state import Active, Holder, Sample
from .sample_step import plan_step
from .step_result import StepResult
from .stopping import Decode

log = logging.getLogger(__name__)

# What a pass of one token counts in a step. A Bamba of 112 M took 35 ms for one token and 520 ms
# for 256 (one CPU thread), so 16; where weights are read from a GPU's memory it is more.
PASS_TOKENS = 32


class SequentialGenerator(BaseGenerator):
    """Generates sequence by sequence, a token or a chunk of a prompt at a time, in turn.

    The samples of a prompt start from copies of its state. What fails concerns one sequence, and
    fails its request alone. No bit depends on what else runs, in deterministic mode or not.

    Args:
        model: the base model.
        store: adapters; a request's version is retained until the request ends.
        state_bytes: what the states of all prompts and samples may take together.
        decode: a tokenizer's decode, needed for stop strings only.
        max_sequences: samples that run at the same time.
        chunk_tokens: tokens of a prompt that are computed at a time, if the model can.
        step_tokens: tokens of a step; see `Rotation`.
    """

    def __init__(
        self,
        model: SequentialModel,
        store: AdapterStore,
        *,
        state_bytes: int,
        decode: Decode | None = None,
        max_sequences: int = 16,
        chunk_tokens: int = 256,
        step_tokens: int = 512,
    ) -> None:
        admission = Admission(
            capacity=state_bytes,
            costs=StateCosts(model.state_bytes, model.config.max_context),
            max_sequences=max_sequences,
            step_tokens=step_tokens,
        )
        super().__init__(model, store, admission, decode)
        self._model = model
        self._states = HeldStates(model)
        self._rotation = Rotation(
            chunk_tokens=chunk_tokens if model.continues_in_chunks else model.config.max_context,
            step_tokens=step_tokens,
            pass_tokens=PASS_TOKENS,
        )
        self._bindings = Bindings(store)
        self._head = SampleHead(model, self._bindings)

    @property
    def num_rows_ahead(self) -> int:
        """About how many rows the largest forward pass of the next step has."""
        new = self._admission.num_rows_ahead - self._admission.num_running
        return max(self._rotation.num_rows_ahead, min(new, self._rotation.chunk_tokens))

    @property
    def memory(self) -> dict[str, tuple[int, int]]:
        """Bytes that the states in work may come to take."""
        admission = self._admission
        return {"sequence_state_bytes": (admission.num_reserved, admission.capacity)}

    def step(self) -> list[Outcome]:
        """Let some sequences take their turn; returns the requests that ended with it."""
        admitted = self._admission.next_step()
        for prefill in admitted.prefills:
            self._rotation.add(self._active[prefill.key], prefill.last)
        self._start_samples(admitted.starts)
        outcomes: list[Outcome] = []
        for turn in self._rotation.next_step():
            work = self._work_of(turn)
            if work is not None:
                self._run(work, outcomes)
        return outcomes

    def check_integrity(self) -> None:
        """Raise AssertionError unless states and turns are those of the requests in work."""
        super().check_integrity()
        self._states.check_integrity(self._active.values())
        prefilling = [each for each in self._active.values() if not each.is_prefilled]
        assert len(self._running) <= len(self._rotation) <= len(self._running) + len(prefilling)

    def _launch(self, ready: Sequence[tuple[Active, Sample]]) -> None:
        for active, sample in ready:
            self._running[sample] = active
            self._rotation.add(sample, 1)

    def _release(self, holder: Holder) -> None:
        self._rotation.remove(holder)
        self._states.release(holder)

    def _work_of(self, turn: Turn) -> Work | None:
        """What is to compute, unless the request has failed in an earlier turn of the step."""
        match turn.name:
            case Active() as active if active.request.key in self._active:
                return self._prompt_work(active, turn.first, turn.last, ())
            case Sample() as sample if sample in self._running:
                return self._decode_work(self._running[sample], sample, ())
        return None

    def _run(self, work: Work, outcomes: list[Outcome]) -> None:
        key = work.active.request.key
        failure: SampleFailed | None = None
        try:
            result = self._compute(work)
        except Exception as error:
            log.warning("a pass over %d tokens failed", len(work.piece.tokens), exc_info=True)
            self.num_failed_steps += 1
            failure = failure_of(key, error)
        # The traceback, and with it the tensors of the failed pass, is gone by now.
        if failure is not None:
            self._fail(work.active, failure, outcomes)
            return
        self._commit([work], result, outcomes)
        if work.sample is not None and work.sample in self._running:
            self._rotation.add(work.sample, 1)

    @torch.no_grad()
    def _compute(self, work: Work) -> StepResult:
        piece = work.piece
        state = (
            self._states.of_prompt(work.active)
            if work.sample is None
            else self._states.of_sample(work.active, work.sample)
        )
        linears = self._bindings.bind(LAYERS, [piece.version], np.array([len(piece.tokens)]))
        tokens_L = torch.from_numpy(piece.tokens).to(self._model.device)
        hidden_LD = self._model.advance(state, tokens_L, linears)
        return self._head.read(hidden_LD, plan_step([piece]), [piece.version])
