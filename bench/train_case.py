"""Tenants of one loaded model that train: all together, one by one, or the base alone."""

import dataclasses
from collections.abc import Sequence
from copy import copy
from typing import Any

import numpy as np
import torch

from weft.engine.adapters.head_form import head_chunk_rows, open_head
from weft.engine.adapters.optimizer import step as optimizer_step
from weft.engine.adapters.store import AdapterStore
from weft.engine.model.decoder import Decoder
from weft.engine.model.linear import FrozenLinears
from weft.engine.model.open_attention import packed_attentions
from weft.engine.trace import Trace
from weft.engine.worker.commands import Origin, PassWork
from weft.engine.worker.runs import HeldRun, RunTable
from weft.engine.worker.scheduler import Passes, Slice
from weft.engine.worker.train import Trainer
from weft.engine.worker.units import cut_units

UNIT_TOKENS = 1024
NUM_REQUESTS = 16


@dataclasses.dataclass
class Adam:
    """AdamW's fields, as a request carries them."""

    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-12
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0


class TrainCase:
    """One loaded model and the tenants of one measurement.

    Args:
        ranks: of the tenants, where there are several.
        single_rank: of the only one.
    """

    def __init__(
        self,
        model: Decoder,
        *,
        ranks: Sequence[int],
        single_rank: int,
        state_bytes: int,
        weights_bytes: int,
        is_deterministic: bool = False,
        recompute_above_tokens: int = 1 << 30,
    ) -> None:
        self.store = AdapterStore(
            model.sites,
            device=model.device,
            dtype=model.dtype,
            state_bytes=state_bytes,
            weights_bytes=weights_bytes,
            uses_triton=model.uses_triton,
        )
        self.runs = RunTable(self.store, ())
        self._ranks, self._single_rank = ranks, single_rank
        self._recompute_above_tokens = recompute_above_tokens
        self._open(model, is_deterministic)

    def _open(self, model: Decoder, is_deterministic: bool) -> None:
        self.model = model
        self._attentions = packed_attentions(model, is_deterministic=is_deterministic)
        self.trainer = Trainer(
            model,
            self.runs,
            open_head(model, uses_triton=model.uses_triton),
            Trace(),
            is_deterministic=is_deterministic,
            recompute_above_tokens=self._recompute_above_tokens,
        )

    def deterministic(self, model: Decoder) -> "TrainCase":
        """The same tenants in deterministic mode, over the same weights with fixed row tiles."""
        other = copy(self)
        other._open(model, is_deterministic=True)
        return other

    def tenants(self, number: int, has_unembed: bool) -> list[str]:
        """Make this many fresh tenants in place of those of the same number; returns run ids."""
        run_ids = [f"{number}.{index}" for index in range(number)]
        for index, run_id in enumerate(run_ids):
            self.runs.drop_run(run_id)
            run = self.store.create(
                rank=self._ranks[index % len(self._ranks)] if number > 1 else self._single_rank,
                alpha=32.0,
                train_attn=True,
                train_mlp=True,
                train_unembed=has_unembed,
                seed=index,
            )
            held = HeldRun(run, f"local/{index}", "bench", True, True, has_unembed)
            self.runs.add_run(run_id, held)
        return run_ids

    def works(self, run_ids: Sequence[str], tokens_each: int) -> list[PassWork]:
        """Sixteen requests of this many tokens, dealt to the tenants in turn."""
        generator = np.random.default_rng(0)
        vocab_size, works = self.model.config.vocab_size, []
        for job_id in range(NUM_REQUESTS):
            tokens = generator.integers(0, vocab_size, tokens_each, dtype=np.int32)
            works.append(
                PassWork(
                    origin=Origin(job_id, 1, f"local/{job_id}", job_id),
                    run_id=run_ids[job_id % len(run_ids)],
                    loss_fn="cross_entropy",
                    loss_fn_config={},
                    forward_only=False,
                    part_outputs=(tokens_each,),
                    tokens=tokens,
                    lengths=np.array([tokens_each], np.int32),
                    targets=np.roll(tokens, -1),
                    inputs={"weights": np.ones(tokens_each, np.float32)},
                    units=cut_units([tokens_each], UNIT_TOKENS),
                )
            )
        return works

    def train(self, works: Sequence[PassWork]) -> None:
        """One fused train step over whole commands."""
        slices = tuple(
            Slice(work.origin.dispatch_id, 0, len(work.units), ends_job=True) for work in works
        )
        tokens = sum(len(work.tokens) for work in works)
        outcome = self.trainer.step(Passes(slices, backward=True, num_tokens=tokens), works)
        if outcome.failures or outcome.repeats:
            raise RuntimeError(f"the step failed: {outcome}")
        for work in works:
            self.trainer.collect(work)

    def train_one_by_one(self, works: Sequence[PassWork]) -> None:
        """The same, one train step per tenant."""
        for run_id in dict.fromkeys(work.run_id for work in works):
            self.train([work for work in works if work.run_id == run_id])

    def frozen(self, works: Sequence[PassWork]) -> None:
        """Forward and input gradient of the base alone: every matmul twice, and the head's too."""
        device = self.model.device
        tokens_T, targets_T = (
            torch.from_numpy(np.concatenate([getattr(work, name) for work in works])).to(
                device, torch.int64
            )
            for name in ("tokens", "targets")
        )
        lengths = [len(work.tokens) for work in works]
        cu_seqlens = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        positions_T = torch.cat([torch.arange(length, device=device) for length in lengths])
        hidden_TD = self.model.forward(
            tokens_T,
            positions_T,
            self._attentions(cu_seqlens),
            _FrozenFromFirstLayer(),
        )
        dhidden_TD = torch.empty_like(hidden_TD)
        num_rows = head_chunk_rows(self.model.uses_triton)
        shape = (2, num_rows, self.model.config.vocab_size)
        logits, shares = torch.empty(shape, dtype=self.model.dtype, device=device)
        with torch.no_grad():
            for first in range(0, len(tokens_T), num_rows):
                rows = hidden_TD[first : first + num_rows]
                chunk = self.model.head.forward(rows, logits[: len(rows)])
                chunk = torch.softmax(chunk, dim=1, out=shares[: len(rows)])
                chunk[
                    torch.arange(len(rows), device=device), targets_T[first : first + num_rows]
                ] -= 1
                self.model.head.backward_input(chunk, dhidden_TD[first : first + num_rows])
        torch.autograd.backward(hidden_TD, dhidden_TD)

    def step_optimizer(self, run_ids: Sequence[str]) -> None:
        """One optimizer step of runs that have gradients."""
        optimizer_step(self.store, [(self.runs.run(run_id).run, Adam()) for run_id in run_ids])


class _FrozenFromFirstLayer(FrozenLinears):
    """Frozen linears whose first group already wants a gradient, as a trained one would."""

    def __init__(self) -> None:
        self._is_first = True

    def group(
        self, x_TD: torch.Tensor, bases: tuple[Any, ...], sites: tuple[int, ...]
    ) -> tuple[torch.Tensor, ...]:
        if self._is_first:
            x_TD = x_TD.detach().requires_grad_()
            self._is_first = False
        return super().group(x_TD, bases, sites)
