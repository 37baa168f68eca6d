"""Forks: the same numbers as eager copies, whatever is done to whom."""

import random
from dataclasses import dataclass

import pytest
import torch
from lora_helpers import make_run, make_store

from weft.client.errors import Busy
from weft.engine.adapters.optimizer import step
from weft.engine.adapters.states import MASTER, MOMENT1, MOMENT2
from weft.engine.adapters.store import AdapterStore, Run, WeightsVersion
from weft.engine.adapters.targets import LAYERS, PORTIONS

MOST_RUNS = 8


@dataclass(frozen=True)
class Params:
    """AdamParams of one step."""

    learning_rate: float = 1e-2
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-12
    weight_decay: float = 0.1
    grad_clip_norm: float = 0.5


def noise(store: AdapterStore, run: Run, seed: int) -> torch.Tensor:
    return torch.randn(store.flat(run, MASTER).shape, generator=torch.Generator().manual_seed(seed))


def add_gradient(store: AdapterStore, run: Run, seed: int, is_kept: bool = True) -> None:
    gradient = noise(store, run, seed)
    store.begin(run)
    for portion in PORTIONS:
        first, size = store.layout.portion_range(run.rank, run.targets, portion)
        if run.targets & portion:
            piece = gradient[first * store.layout.granule :][: size * store.layout.granule]
            store.add_to_stages([run], [[piece]], portion)
    (store.commit if is_kept else store.discard)(run)


def state_of(store: AdapterStore, run: Run) -> list[torch.Tensor]:
    """All that a run is, copied."""
    planes = [MASTER, MOMENT1, MOMENT2] + [run.gradient_plane] * run.has_gradient
    flats = [store.flat(run, plane).clone() for plane in planes]
    counts = torch.tensor([run.step, run.has_gradient])
    return [*flats, store.version_flat(run.version).clone(), counts]


def assert_same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert len(found) == len(expected)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def trained(store: AdapterStore, rank: int = 4) -> Run:
    """A run with moments, and a gradient on top."""
    run = make_run(store, rank, mask=3)
    add_gradient(store, run, 1)
    step(store, [(run, Params())])
    add_gradient(store, run, 2)
    return run


def eager_fork(store: AdapterStore, run: Run) -> Run:
    """The same by a copy of everything."""
    copy = make_run(store, run.rank, mask=int(run.targets))
    for plane in (MASTER, MOMENT1, MOMENT2, run.gradient_plane):
        store.writable(copy, plane).copy_(store.flat(run, plane))
    store.version_flat(copy.version).copy_(store.version_flat(run.version))
    copy.step, copy.has_gradient = run.step, run.has_gradient
    copy.gradient_plane = run.gradient_plane
    return copy


class Bench:
    """Runs that fork lazily, and beside each the one that came by an eager copy."""

    def __init__(self, source: random.Random) -> None:
        self.source = source
        self.lazy, self.eager = make_store(), make_store()
        self.pairs: list[tuple[Run, Run]] = []
        self.snapshots: list[tuple[WeightsVersion, torch.Tensor]] = []

    def act(self, number: int) -> None:
        if not self.pairs:
            rank = self.source.choice([1, 4])
            self.pairs.append(
                (make_run(self.lazy, rank, number), make_run(self.eager, rank, number))
            )
        lazy, eager = self.source.choice(self.pairs)
        match self.source.choice(["fork"] * 3 + ["add"] * 3 + ["step", "load", "drop", "snap"]):
            case "fork" if len(self.pairs) < MOST_RUNS:
                self.pairs.append((self.lazy.fork(lazy), eager_fork(self.eager, eager)))
            case "add":
                is_kept = self.source.random() < 0.8
                add_gradient(self.lazy, lazy, number, is_kept)
                add_gradient(self.eager, eager, number, is_kept)
            case "step":
                self.step()
            case "load":
                self.load(lazy, eager)
            case "drop":
                self.pairs.remove((lazy, eager))
                self.lazy.drop(lazy)
                self.eager.drop(eager)
            case "snap":
                version = self.lazy.retain(lazy.version)
                self.snapshots.append((version, self.lazy.version_flat(version).clone()))
                if len(self.snapshots) > 4:
                    self.lazy.release(self.snapshots.pop(0)[0])

    def step(self) -> None:
        """Some runs together, each at its own rate; one in ten gradients is not finite."""
        due = self.source.sample(self.pairs, self.source.randint(1, len(self.pairs)))
        rates = [Params(learning_rate=self.source.random()) for _ in due]
        for place, store in enumerate((self.lazy, self.eager)):
            step(store, [(pair[place], rate) for pair, rate in zip(due, rates, strict=True)])

    def load(self, lazy: Run, eager: Run) -> None:
        """Another run's state."""
        fit = [pair for pair in self.pairs if pair[0].rank == lazy.rank]
        place = self.source.randrange(len(fit))
        with_optimizer = self.source.random() < 0.5
        for store, run, other in (
            (self.lazy, lazy, fit[place][0]),
            (self.eager, eager, fit[place][1]),
        ):
            tensors, steps = store.export_state(other)
            store.import_state(run, tensors, steps, with_optimizer)

    def check(self) -> None:
        self.lazy.check_integrity([lazy for lazy, _ in self.pairs])
        for lazy, eager in self.pairs:
            assert_same(state_of(self.lazy, lazy), state_of(self.eager, eager))
        for version, before in self.snapshots:
            assert torch.equal(self.lazy.version_flat(version), before)


@pytest.mark.parametrize("seed", range(6))
def test_any_sequence_of_acts_gives_the_bits_of_eager_copies(seed: int) -> None:
    bench = Bench(random.Random(seed))
    for number in range(300):
        bench.act(number)
        bench.check()
    for lazy, _ in bench.pairs:
        bench.lazy.drop(lazy)
    bench.lazy.check_integrity([])


def test_a_fork_that_is_never_trained_copies_nothing() -> None:
    store = make_store()
    run = trained(store)
    planes = store.states.planes.view(torch.int32)  # bits, since memory nobody wrote may hold NaN
    before = planes.clone()
    forks = [store.fork(run) for _ in range(3)]
    assert torch.equal(planes, before)
    assert all(fork.version is run.version for fork in forks)
    for fork in forks:
        assert_same(state_of(store, fork), state_of(store, run))
        store.drop(fork)
    assert torch.equal(planes, before)
    assert run.version.references == 1


@pytest.mark.parametrize("is_source_first", [True, False])
def test_whoever_steps_first_leaves_the_other_as_it_was(is_source_first: bool) -> None:
    store = make_store()
    run = trained(store)
    fork = store.fork(run)
    first, second = (run, fork) if is_source_first else (fork, run)
    before = state_of(store, second)
    step(store, [(first, Params())])
    assert_same(state_of(store, second), before)
    step(store, [(second, Params())])
    assert_same(state_of(store, second), state_of(store, first))


def test_a_stage_is_no_part_of_a_fork() -> None:
    store = make_store()
    run = trained(store)
    fork = store.fork(run)
    before = state_of(store, fork)
    store.begin(run)
    store.add_to_stages([run], [[torch.full_like(before[0], float("nan"))]], LAYERS)
    assert_same(state_of(store, fork), before)
    store.discard(run)
    assert_same(state_of(store, run), before)


def test_a_full_arena_refuses_the_fork_and_never_a_later_write() -> None:
    store = AdapterStore(
        make_store().sites,
        device="cpu",
        dtype=torch.float32,
        state_bytes=400_000,
        weights_bytes=4 << 20,
    )
    runs = [trained(store, rank=1)]
    while store.states.blocks.num_free >= runs[0].block.size:
        runs.append(store.fork(runs[-1]))
    assert len(runs) > 3
    with pytest.raises(Busy, match="fork of rank 1"):
        store.fork(runs[0])
    store.check_integrity(runs)
    for run in runs:
        step(store, [(run, Params())])
        add_gradient(store, run, 7)
        assert_same(state_of(store, run), state_of(store, runs[0]))
