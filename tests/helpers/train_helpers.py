"""A trainer with fresh runs over a small model, and commands for it, without any worker around."""

from collections.abc import Sequence

import numpy as np
import torch

from weft.engine.adapters.head import Head
from weft.engine.adapters.store import AdapterStore
from weft.engine.model.decoder import Decoder
from weft.engine.trace import Trace
from weft.engine.worker.commands import Origin, PassWork
from weft.engine.worker.runs import HeldRun, RunTable
from weft.engine.worker.train import Trainer
from weft.engine.worker.units import cut_units

LOSSES = ("cross_entropy", "importance_sampling", "ppo")
Adapter = tuple[int, bool]  # rank, whether the unembedding has one


def make_trainer(
    decoder: Decoder, adapters: Sequence[Adapter], chunk_rows: int
) -> tuple[Trainer, RunTable]:
    """A fresh run of each adapter, with a B that is not zero."""
    store = AdapterStore(
        decoder.sites,
        device="cpu",
        dtype=decoder.dtype,
        state_bytes=1 << 27,
        weights_bytes=1 << 26,
    )
    runs = RunTable(store, ())
    for index, (rank, has_unembed) in enumerate(adapters):
        run = store.create(
            rank=rank, alpha=32, train_attn=True, train_mlp=True, train_unembed=has_unembed, seed=1
        )
        tensors = store.export_weights(run.version)
        generator = torch.Generator().manual_seed(rank)
        for name, tensor in tensors.items():
            if name.endswith("lora_b"):
                tensor.normal_(0, 0.1, generator=generator)
        store.import_state(run, tensors, 0, with_optimizer=False)
        runs.add_run(f"r{index}", HeldRun(run, f"local/{index}", "m", True, True, True))
    head = Head(decoder.head, len(decoder.sites) - 1, chunk_rows=chunk_rows)
    trainer = Trainer(
        decoder, runs, head, Trace(), is_deterministic=True, recompute_above_tokens=1 << 20
    )
    return trainer, runs


def random_work(
    job_id: int, run_id: str, lengths: list[int], vocab_size: int, rng: np.random.Generator
) -> PassWork:
    """One forward_backward of datums of these lengths, cut into units of 64 tokens."""
    size = sum(lengths)
    tokens = rng.integers(0, vocab_size, size, dtype=np.int32)
    loss_fn = str(rng.choice(LOSSES))
    inputs = {"weights": np.ones(size, np.float32)}
    if loss_fn != "cross_entropy":
        advantages = rng.normal(size=size).astype(np.float32)
        inputs = {"logprobs": np.full(size, -4, np.float32), "advantages": advantages}
    return PassWork(
        origin=Origin(job_id, 1, run_id, job_id),
        run_id=run_id,
        loss_fn=loss_fn,
        loss_fn_config={},
        forward_only=False,
        part_outputs=(size,),
        tokens=tokens,
        lengths=np.array(lengths, np.int32),
        targets=np.roll(tokens, -1),
        inputs=inputs,
        units=cut_units(lengths, 64),
    )
