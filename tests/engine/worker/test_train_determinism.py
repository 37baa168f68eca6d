"""In deterministic mode a run's step has the same bits alone and beside any other runs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from random_models import save_random_model
from thread_counts import threads
from train_helpers import Adapter, make_trainer, random_work

from weft.engine.adapters.optimizer import step as optimizer_step
from weft.engine.adapters.states import MASTER
from weft.engine.model.decoder import Decoder
from weft.engine.worker.commands import PassWork
from weft.engine.worker.scheduler import Passes, Slice

LENGTHS = (1, 1, 1, 2, 3, 5, 6, 8, 12, 17, 30, 64, 100)
RANKS = (1, 4, 8, 9, 16, 64, 128)
Found = dict[tuple[object, ...], np.ndarray]


class Adam:
    """AdamW's fields."""

    learning_rate, beta1, beta2 = 1e-3, 0.9, 0.95
    eps, weight_decay, grad_clip_norm = 1e-12, 0.1, 1.0


def train(
    decoder: Decoder,
    adapters: Sequence[Adapter],
    works: list[PassWork],
    chunk_rows: int,
    split: np.random.Generator | None = None,
) -> Found:
    """Log-probabilities, gradients and new weights of one step with all works in it.

    With `split` each work's units are dealt to two batches at random.
    """
    trainer, runs = make_trainer(decoder, adapters, chunk_rows)
    sizes = {work.origin.dispatch_id: len(work.units) for work in works}
    cuts = {
        job: size if split is None else int(split.integers(size)) for job, size in sizes.items()
    }
    by_job = {work.origin.dispatch_id: work for work in works}
    for decision in (
        [Slice(job, 0, cut, cut == sizes[job]) for job, cut in cuts.items() if cut],
        [Slice(job, cut, sizes[job], True) for job, cut in cuts.items() if cut < sizes[job]],
    ):
        chosen = [by_job[piece.job_id] for piece in decision]
        if chosen:
            passes = Passes(tuple(decision), True, sum(len(work.tokens) for work in chosen))
            assert not trainer.step(passes, chosen).failures
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


def test_a_run_has_the_same_bits_among_1_7_or_63_others_shuffled_and_in_any_split(
    tmp_path: Path,
) -> None:
    save_random_model(tmp_path)
    decoder = Decoder.load(tmp_path, row_tile=16)
    rng = np.random.default_rng(0)
    adapters = [(int(rng.choice(RANKS[:-1])), bool(rng.integers(2))) for _ in range(64)]
    works = [
        random_work(job, f"r{job}", rng.choice(LENGTHS[:-1], 6).tolist(), 97, rng)
        for job in range(64)
    ]
    own = works[40]
    with threads(2):
        expected = train(decoder, adapters, [own], 64)
        for others in (1, 7, 63):
            company = rng.permutation([job for job in range(64) if job != 40])[:others]
            mixed = [works[job] for job in rng.permutation([40, *company]).tolist()]
            found = train(decoder, adapters, mixed, 64, split=rng)
            for name, values in expected.items():
                np.testing.assert_array_equal(found[name], values, err_msg=f"{others} {name}")
