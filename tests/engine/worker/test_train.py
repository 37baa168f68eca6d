"""The shape of a train step: what it costs does not grow with the number of tenants."""

import time
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from lora_helpers import CountOps
from random_models import save_random_model

from weft.engine.adapters.head import Head
from weft.engine.adapters.optimizer import step as optimizer_step
from weft.engine.adapters.store import AdapterStore
from weft.engine.model.decoder import Decoder
from weft.engine.model.linear import DenseLinear
from weft.engine.trace import Trace
from weft.engine.worker.commands import Origin, PassWork
from weft.engine.worker.runs import HeldRun, RunTable
from weft.engine.worker.scheduler import Passes, Slice
from weft.engine.worker.train import Trainer
from weft.engine.worker.units import cut_units

NUM_REQUESTS = 16
TOKENS = 12


class Adam:
    """AdamW's fields."""

    learning_rate, beta1, beta2 = 1e-3, 0.9, 0.95
    eps, weight_decay, grad_clip_norm = 1e-12, 0.1, 1.0


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    path = tmp_path_factory.mktemp("model")
    save_random_model(path)
    return Decoder.load(path)


def trainer(
    decoder: Decoder, num_tenants: int, recompute_above_tokens: int = 1 << 20
) -> tuple[Trainer, list[PassWork]]:
    """Sixteen requests of this many tenants, all of one rank."""
    store = AdapterStore(
        decoder.sites,
        device="cpu",
        dtype=torch.float32,
        state_bytes=1 << 26,
        weights_bytes=1 << 24,
    )
    runs = RunTable(store, ())
    for index in range(num_tenants):
        run = store.create(
            rank=8, alpha=32, train_attn=True, train_mlp=True, train_unembed=True, seed=index
        )
        runs.add_run(f"r{index}", HeldRun(run, f"local/{index}", "m", True, True, True))
    works = []
    generator = np.random.default_rng(0)
    for job_id in range(NUM_REQUESTS):
        tokens = generator.integers(0, 97, TOKENS, dtype=np.int32)
        works.append(
            PassWork(
                origin=Origin(job_id, 1, f"local/{job_id % num_tenants}", job_id),
                run_id=f"r{job_id % num_tenants}",
                loss_fn="cross_entropy",
                loss_fn_config={},
                forward_only=False,
                part_outputs=(TOKENS,),
                tokens=tokens,
                lengths=np.array([TOKENS], np.int32),
                targets=np.roll(tokens, -1),
                inputs={"weights": np.ones(TOKENS, np.float32)},
                units=cut_units([TOKENS], 64),
            )
        )
    works.sort(key=lambda work: work.run_id)
    made = Trainer(
        decoder,
        runs,
        Head(decoder.head, len(decoder.sites) - 1),
        Trace(),
        is_deterministic=False,
        recompute_above_tokens=recompute_above_tokens,
    )
    return made, works


def one_step(made: Trainer, works: list[PassWork]) -> None:
    slices = tuple(Slice(work.origin.dispatch_id, 0, len(work.units), True) for work in works)
    outcome = made.step(Passes(slices, True, NUM_REQUESTS * TOKENS), works)
    assert not outcome.failures


def counted(decoder: Decoder, num_tenants: int) -> dict[str, int]:
    """Operations of one warm train step and one optimizer step over all its runs."""
    made, works = trainer(decoder, num_tenants)
    one_step(made, works)
    with CountOps() as ops:
        one_step(made, works)
        held = {work.run_id: made._runs.run(work.run_id).run for work in works}
        optimizer_step(made._store, [(run, Adam()) for run in held.values()])
    return dict(ops.counts)


def test_base_matmuls_of_a_train_step_are_equal_for_1_and_16_tenants(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: Counter[int] = Counter()
    now = 0

    def counting(original: Any) -> Any:
        def matmul(*arguments: Any, **named: Any) -> torch.Tensor:
            calls[now] += 1
            result: torch.Tensor = original(*arguments, **named)
            return result

        return matmul

    for name in ("forward", "backward_input"):
        monkeypatch.setattr(DenseLinear, name, counting(getattr(DenseLinear, name)))
    for now in (1, 16):
        one_step(*trainer(decoder, now))
    assert calls[1] == calls[16] > 0


def test_no_operation_count_grows_with_the_number_of_tenants(decoder: Decoder) -> None:
    four, sixteen = counted(decoder, 4), counted(decoder, 16)
    grown = {
        name: (four.get(name, 0), count)
        for name, count in sixteen.items()
        if count > four.get(name, 0)
    }
    assert grown == {}


def test_recomputed_activations_give_the_same_gradients_to_the_bit(decoder: Decoder) -> None:
    norms = []
    for recompute_above_tokens in (1 << 20, 0):
        made, works = trainer(decoder, 4, recompute_above_tokens)
        one_step(made, works)
        runs = [made._runs.run(f"r{index}").run for index in range(4)]
        norms.append([made._store.flat(run, run.gradient_plane).clone().tolist() for run in runs])
    assert norms[0] == norms[1]


def test_an_answer_tells_how_long_its_command_waited_and_computed(decoder: Decoder) -> None:
    made, works = trainer(decoder, 1)
    arrived = time.monotonic() - 3
    origin = replace(works[0].origin, queued_s=5.0, arrived=arrived)
    works[0] = replace(works[0], origin=origin)
    began = time.monotonic()
    one_step(made, works)
    took = time.monotonic() - began
    _, metrics = made.collect(works[0])
    assert 8 <= metrics["queue_s:max"] <= 8 + time.monotonic() - began
    assert 0 < metrics["compute_s:sum"] <= took
    assert metrics["num_tokens:sum"] == TOKENS


def test_a_step_that_fails_at_its_end_counts_no_call(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, works = trainer(decoder, 2)

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patch:
        patch.setattr(made._store, "commit", fail)
        with pytest.raises(torch.OutOfMemoryError):
            one_step(made, works)
    made.abandon(works)
    assert [made._runs.run(f"r{index}").num_calls for index in range(2)] == [0, 0]
    one_step(made, works)
    assert [made._runs.run(f"r{index}").num_calls for index in range(2)] == [8, 8]
