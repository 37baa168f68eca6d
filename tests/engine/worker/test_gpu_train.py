"""Train steps by the Triton kernels: launches, and the bits of a tenant in any company."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import interpreter
import numpy as np
import pytest
import torch
from lora_helpers import CountOps
from random_models import save_random_model

from weft.engine.adapters.head_form import open_head
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
from weft.kernels.gpu.variants import Variant

RANKS = (3, 16, 40)
VOCAB_SIZE = 97
UNIT_TOKENS = 32
MANY = 6 if interpreter.IS_INTERPRETED else 64
# What the batched form is made of: it gathers adapters and multiplies in batches.
BATCHED = {"aten::bmm", "aten::baddbmm", "aten::baddbmm_", "aten::index_add_"}
Found = dict[object, np.ndarray]


class Adam:
    """AdamW's fields."""

    learning_rate, beta1, beta2 = 1e-3, 0.9, 0.95
    eps, weight_decay, grad_clip_norm = 1e-12, 0.1, 1.0


class Bench:
    """A trainer with one run for each rank."""

    def __init__(self, path: Path, ranks: Sequence[int], is_deterministic: bool) -> None:
        device = interpreter.kernel_device()
        self.model = Decoder.load(
            path, device=device, row_tile=16 * is_deterministic, uses_triton=True
        )
        self.store = AdapterStore(
            self.model.sites,
            device=device,
            dtype=self.model.dtype,
            state_bytes=1 << 26,
            weights_bytes=1 << 24,
            uses_triton=True,
        )
        self.runs = RunTable(self.store, ())
        for index, rank in enumerate(ranks):
            self._add_run(index, rank)
        self.trainer = Trainer(
            self.model,
            self.runs,
            open_head(self.model, uses_triton=True, chunk_rows=64),
            Trace(),
            is_deterministic=is_deterministic,
            recompute_above_tokens=1 << 20,
        )

    def _add_run(self, index: int, rank: int) -> None:
        run = self.store.create(
            rank=rank, alpha=32, train_attn=True, train_mlp=True, train_unembed=True, seed=index
        )
        tensors = self.store.export_weights(run.version)
        generator = torch.Generator().manual_seed(index)
        for name, tensor in tensors.items():
            if name.endswith("lora_b"):
                tensor.normal_(0, 0.1, generator=generator)
        self.store.import_state(run, tensors, 0, with_optimizer=False)
        self.runs.add_run(f"r{index}", HeldRun(run, f"local/{index}", "m", True, True, True))

    def train(self, works: Sequence[PassWork]) -> None:
        """One batch of whole commands."""
        slices = tuple(Slice(work.origin.dispatch_id, 0, len(work.units), True) for work in works)
        passes = Passes(slices, True, sum(len(work.tokens) for work in works))
        assert not self.trainer.step(passes, works).failures

    def step(self, works: Sequence[PassWork]) -> None:
        """The optimizer, for everybody who has a gradient."""
        ids = sorted({work.run_id for work in works})
        due = [(self.runs.run(run_id).run, Adam()) for run_id in ids]
        assert all(result.applied for result in optimizer_step(self.store, due))


def work_of(number: int, owner: int, lengths: Sequence[int]) -> PassWork:
    """A forward_backward of random tokens that depend on its number alone."""
    size = sum(lengths)
    tokens = np.random.default_rng(number).integers(0, VOCAB_SIZE, size, dtype=np.int32)
    return PassWork(
        origin=Origin(number, 1, f"local/{owner}", number),
        run_id=f"r{owner}",
        loss_fn="cross_entropy",
        loss_fn_config={},
        forward_only=False,
        part_outputs=(size,),
        tokens=tokens,
        lengths=np.array(lengths, np.int32),
        targets=np.roll(tokens, -1),
        inputs={"weights": np.ones(size, np.float32)},
        units=cut_units(list(lengths), UNIT_TOKENS),
    )


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("model")
    save_random_model(made, vocab_size=VOCAB_SIZE, num_layers=1)
    return made


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each kernel was launched."""
    counts: Counter[str] = Counter()
    plain = Variant.launch

    def launch(self: Variant, grid: tuple[int, ...], **arguments: Any) -> None:
        counts[self.kernel.fn.__name__] += all(grid)
        plain(self, grid, **arguments)

    monkeypatch.setattr(Variant, "launch", launch)
    return counts


def test_launches_of_a_step_do_not_grow_with_the_number_of_tenants(
    path: Path, launches: Counter[str]
) -> None:
    seen = []
    for num_tenants in (2, MANY):
        bench = Bench(path, [8] * num_tenants, is_deterministic=False)
        works = [work_of(number, number % num_tenants, [4]) for number in range(MANY)]
        works.sort(key=lambda work: work.run_id)
        launches.clear()
        bench.train(works)
        bench.step(works)
        seen.append(launches.total())
    assert 0 < seen[1] <= 1.1 * seen[0]


def test_nothing_of_the_batched_form_runs(path: Path) -> None:
    bench = Bench(path, RANKS, is_deterministic=False)
    works = [work_of(number, number, [4]) for number in range(len(RANKS))]
    with CountOps() as ops:
        bench.train(works)
        bench.step(works)
    assert not BATCHED & set(ops.counts)


@pytest.mark.skipif(interpreter.IS_INTERPRETED, reason="a profile of a CUDA device")
def test_a_device_launches_as_often_for_many_tenants_and_nothing_batched(path: Path) -> None:
    counts = []
    for num_tenants in (2, MANY):
        bench = Bench(path, [8] * num_tenants, is_deterministic=False)
        works = [work_of(number, number % num_tenants, [4]) for number in range(MANY)]
        works.sort(key=lambda work: work.run_id)
        bench.train(works)  # compiles
        bench.step(works)
        with torch.profiler.profile() as profile:
            bench.train(works)
            bench.step(works)
            torch.cuda.synchronize()
        events = profile.events() or []
        assert not BATCHED & {event.name for event in events}
        counts.append(sum(event.device_type.name == "CUDA" for event in events))
    assert 0 < counts[1] <= 1.1 * counts[0]


def bits_of_first(bench: Bench, batches: Sequence[Sequence[PassWork]]) -> Found:
    """Log-probabilities, gradient and new weights of run 0 after some batches and a step."""
    found: Found = {}
    for works in batches:
        bench.train(works)
        for work in works:
            logprobs, _ = bench.trainer.collect(work)
            if work.run_id == "r0":
                found[work.origin.dispatch_id] = logprobs.copy()
    run = bench.runs.run("r0").run
    found["gradient"] = bench.store.flat(run, run.gradient_plane).cpu().numpy().copy()
    bench.step([work for works in batches for work in works])
    found["weights"] = bench.store.flat(run, MASTER).cpu().numpy().copy()
    return found


@pytest.mark.parametrize("num_others", [2] if interpreter.IS_INTERPRETED else [2, 7, 63])
def test_no_bit_of_a_tenant_depends_on_company_order_or_batches(
    path: Path, num_others: int
) -> None:
    ranks = [16, *(RANKS[index % len(RANKS)] for index in range(num_others))]
    own = [work_of(0, 0, [20, 7]), work_of(1, 0, [1, 33])]
    others = [work_of(2 + index, 1 + index, [5, 11]) for index in range(num_others)]
    alone = bits_of_first(Bench(path, ranks, True), [own])
    orders: list[list[list[PassWork]]] = [
        [[*others, *own]],
        [[others[0], own[0]], [own[1], *others[1:]]],
    ]
    for batches in orders:
        found = bits_of_first(Bench(path, ranks, True), batches)
        for name, values in alone.items():
            np.testing.assert_array_equal(found[name], values, err_msg=str(name))
