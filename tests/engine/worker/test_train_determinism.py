"""In deterministic mode a run's step has the same bits alone and beside any other runs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from random_models import save_random_model
from thread_counts import threads

from weft.engine.adapters.head import Head
from weft.engine.adapters.optimizer import step as optimizer_step
from weft.engine.adapters.states import MASTER
from weft.engine.adapters.store import AdapterStore
from weft.engine.model.decoder import Decoder
from weft.engine.trace import Trace
from weft.engine.worker.commands import Origin, PassWork
from weft.engine.worker.runs import HeldRun, RunTable
from weft.engine.worker.scheduler import Passes, Slice
from weft.engine.worker.train import Trainer
from weft.engine.worker.units import cut_units

LENGTHS = (1, 1, 1, 2, 3, 5, 6, 8, 12, 17, 30, 64, 100)
RANKS = (1, 4, 8, 9, 16, 64, 128)
LOSSES = ("cross_entropy", "importance_sampling", "ppo")
Adapter = tuple[int, bool]  # rank, whether the unembedding has one
Found = dict[tuple[object, ...], np.ndarray]


class Adam:
    """AdamW's fields."""

    learning_rate, beta1, beta2 = 1e-3, 0.9, 0.95
    eps, weight_decay, grad_clip_norm = 1e-12, 0.1, 1.0


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


def train(
    decoder: Decoder, adapters: Sequence[Adapter], works: list[PassWork], chunk_rows: int
) -> Found:
    """Log-probabilities, gradients and new weights of one step with all works in it."""
    trainer, runs = make_trainer(decoder, adapters, chunk_rows)
    slices = tuple(Slice(work.origin.dispatch_id, 0, len(work.units), True) for work in works)
    decision = Passes(slices, True, sum(len(work.tokens) for work in works))
    assert not trainer.step(decision, works).failures
    found: Found = {
        (work.run_id, work.origin.dispatch_id): trainer.collect(work)[0].copy() for work in works
    }
    held = {work.run_id: runs.run(work.run_id).run for work in works}
    for run_id, run in held.items():
        found[run_id, "gradient"] = runs.store.flat(run, run.gradient_plane).clone().numpy()
    optimizer_step(runs.store, [(run, Adam()) for run in held.values()])
    for run_id, run in held.items():
        found[run_id, "weights"] = runs.store.flat(run, MASTER).clone().numpy()
    return found


def assert_company_changes_nothing(
    decoder: Decoder, adapters: Sequence[Adapter], works: list[PassWork], chunk_rows: int = 64
) -> None:
    together = train(decoder, adapters, works, chunk_rows)
    for run_id in {work.run_id for work in works}:
        own = [work for work in works if work.run_id == run_id]
        for name, values in train(decoder, adapters, own, chunk_rows).items():
            np.testing.assert_array_equal(together[name], values, err_msg=str(name))


@pytest.mark.parametrize("rank", [8, 128])
def test_datums_of_one_token_under_equal_adapters_do_not_change_each_other(
    rank: int, tmp_path: Path
) -> None:
    save_random_model(tmp_path, vocab_size=97)
    decoder = Decoder.load(tmp_path, row_tile=16)
    adapters = [(rank, True), (rank, True), (rank, False), (2 * rank, True)]
    rng = np.random.default_rng(0)
    works = [
        random_work(job_id, f"r{job_id % 4}", [1] * (1 + job_id % 3), 97, rng)
        for job_id in range(10)
    ]
    assert_company_changes_nothing(decoder, adapters, works)


@pytest.mark.parametrize("seed", range(10))
def test_no_bit_of_a_step_depends_on_the_runs_beside_it(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    vocab_size = int(rng.choice([50, 96, 97, 101, 512]))
    save_random_model(
        tmp_path,
        str(rng.choice(["qwen3", "qwen2", "llama"])),
        vocab_size=vocab_size,
        num_kv_heads=int(rng.choice([1, 2, 4])),
    )
    dtype = torch.bfloat16 if seed % 4 == 3 else torch.float32
    decoder = Decoder.load(tmp_path, row_tile=int(rng.choice([16, 256])), dtype=dtype)
    adapters = [(int(rng.choice(RANKS)), bool(rng.integers(2))) for _ in range(rng.integers(2, 6))]
    owners = rng.permutation([*range(len(adapters)), *rng.integers(0, len(adapters), 2)])
    works = [
        random_work(
            job_id, f"r{owner}", rng.choice(LENGTHS, rng.integers(1, 5)).tolist(), vocab_size, rng
        )
        for job_id, owner in enumerate(owners.tolist())
    ]
    with threads(1 + seed % 3):
        assert_company_changes_nothing(
            decoder, adapters, works, chunk_rows=int(rng.choice([16, 64, 256]))
        )
