"""The compute thread's loop without sockets: work goes into its inbox, answers come out decoded."""

import queue
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from random_models import save_random_model

from weft.client import wire
from weft.client.messages import (
    CreateRun,
    ForkRun,
    Header,
    OptimStep,
    Request,
    SaveState,
)
from weft.client.worker_messages import Done, Failed, Withdraw, WorkerCounters
from weft.engine.adapters.head import Head
from weft.engine.adapters.loss_head import HeadResult
from weft.engine.adapters.store import AdapterStore
from weft.engine.files.store import CheckpointFiles
from weft.engine.model.decoder import Decoder
from weft.engine.sampling.generate import Generator
from weft.engine.sampling.kv_cache import KVCache
from weft.engine.trace import Trace
from weft.engine.worker.commands import CommandWork, Origin, PassWork
from weft.engine.worker.compute import Compute
from weft.engine.worker.controls import Controls
from weft.engine.worker.network import Inbox, Network, Stopped
from weft.engine.worker.runs import RunTable
from weft.engine.worker.scheduler import Scheduler
from weft.engine.worker.threads import StepThreads
from weft.engine.worker.train import Trainer
from weft.engine.worker.units import cut_units
from weft.kernels.adam import adamw_


class Wire:
    """Stands where the network thread is."""

    def __init__(self) -> None:
        self.inbox: Inbox = queue.SimpleQueue()
        self.answers: list[Header] = []
        self.counters: WorkerCounters | None = None  # as they were told last

    def send(self, *frames: bytes) -> None:
        header = wire.decode(frames[0])
        if not isinstance(header, WorkerCounters):
            self.answers.append(header)
            return
        self.counters = header
        if header.steps["optimizer"]:  # the last thing that a test of them does
            self.inbox.put(Stopped("counted"))


class Bench:
    """A compute loop on a small random model."""

    def __init__(self, decoder: Decoder, folder: Path, batch_tokens: int) -> None:
        self.wire = Wire()
        self.store = AdapterStore(
            decoder.sites,
            device="cpu",
            dtype=torch.float32,
            state_bytes=1 << 24,
            weights_bytes=1 << 22,
        )
        runs = self.runs = RunTable(self.store, ())
        self.trainer = Trainer(
            decoder,
            runs,
            Head(decoder.head, len(decoder.sites) - 1),
            Trace(),
            is_deterministic=False,
            recompute_above_tokens=1 << 20,
        )
        cache = KVCache(
            decoder.config, num_pages=4, page_size=16, device="cpu", dtype=torch.float32
        )
        self.compute = Compute(
            network=cast(Network, self.wire),
            scheduler=Scheduler(batch_tokens),
            runs=runs,
            trainer=self.trainer,
            generator=Generator(decoder, self.store, cache),
            controls=Controls(runs, CheckpointFiles(folder), "m", ""),
            trace=Trace(),
            threads=StepThreads(False),
            macs_per_row=1.0,
        )

    def put(self, *works: Any) -> None:
        for work in works:
            self.wire.inbox.put(work)

    def run(self) -> dict[int, str]:
        """Work off what is in the inbox; returns "done" or the code by dispatch id."""
        scheduler = self.compute._scheduler
        while not self.wire.inbox.empty() or scheduler:
            self.compute._drain(wait=False)
            decision = scheduler.next(False)
            if decision is not None:
                self.compute._carry_out(decision)
        outcomes: dict[int, str] = {}
        for answer in self.wire.answers:
            if isinstance(answer, Failed):
                outcomes[answer.dispatch_id] = answer.code
            elif isinstance(answer, Done):
                outcomes[answer.dispatch_id] = "done"
        return outcomes


def command(number: int, header: Request) -> CommandWork:
    return CommandWork(Origin(number, 1, "local/s", number), header)


def create(number: int, run_id: str) -> CommandWork:
    header = CreateRun(
        request_id=number,
        run_id=run_id,
        seq=0,
        digest=b"",
        base_model="m",
        rank=4,
        alpha=8.0,
        seed=1,
        train_attn=True,
        train_mlp=True,
        train_unembed=True,
    )
    return command(number, header)


def optim_step(number: int, run_id: str) -> CommandWork:
    header = OptimStep(
        request_id=number,
        run_id=run_id,
        seq=number,
        digest=b"",
        learning_rate=1e-3,
        beta1=0.9,
        beta2=0.95,
        eps=1e-12,
        weight_decay=0.0,
        grad_clip_norm=0.0,
    )
    return command(number, header)


def passed(
    number: int, run_id: str, lengths: Sequence[int] = (8, 8), forward_only: bool = False
) -> PassWork:
    total = sum(lengths)
    tokens = np.random.default_rng(number).integers(0, 97, total, dtype=np.int32)
    return PassWork(
        origin=Origin(number, 1, "local/s", number),
        run_id=run_id,
        loss_fn="cross_entropy",
        loss_fn_config={},
        forward_only=forward_only,
        part_outputs=(total,),
        tokens=tokens,
        lengths=np.array(lengths, np.int32),
        targets=np.roll(tokens, -1),
        inputs={"weights": np.ones(total, np.float32)},
        units=cut_units(list(lengths), 8),
    )


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    path = tmp_path_factory.mktemp("model")
    save_random_model(path)
    return Decoder.load(path)


@pytest.fixture
def bench(decoder: Decoder, tmp_path: Path) -> Bench:
    return Bench(decoder, tmp_path, batch_tokens=8)


def test_a_run_withdrawn_in_the_middle_of_a_command_leaves_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = bench.trainer.step

    def step(*arguments: Any) -> Any:
        outcome = original(*arguments)
        if bench.trainer._partials:
            bench.put(Withdraw(run_ids=["r"]))
        return outcome

    free = bench.store.states.blocks.take(1)
    assert free is not None
    bench.store.states.blocks.give(free)
    monkeypatch.setattr(bench.trainer, "step", step)
    bench.put(create(1, "r"), create(2, "other"), passed(3, "r"), passed(4, "r"))
    assert bench.run() == {1: "done", 2: "done", 3: "cancelled", 4: "cancelled"}
    assert len(bench.trainer._partials) == 0
    assert bench.store.states.blocks.take(1) == free


def test_a_forward_that_is_not_finite_leaves_no_partial_result(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(self: Head, hidden_TD: torch.Tensor, *rest: Any) -> Any:
        blank = torch.full((len(hidden_TD),), torch.nan)
        return HeadResult(blank, blank, blank[:0], blank[:0])

    monkeypatch.setattr(Head, "forward", forward)
    bench.put(create(1, "r"), passed(2, "r", forward_only=True))
    assert bench.run() == {1: "done", 2: "non_finite"}
    assert len(bench.trainer._partials) == 0


def test_an_optimizer_step_without_memory_fails_its_run_and_no_other(
    decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(decoder, tmp_path, batch_tokens=64)

    calls: list[int] = []

    def counting(items: Sequence[Any], settings: Sequence[Any]) -> None:
        calls.append(len(items))
        if len(calls) in (1, 2):  # all together, then the first alone
            raise torch.OutOfMemoryError("injected")
        adamw_(items, settings)

    monkeypatch.setattr("weft.engine.adapters.optimizer.adamw_", counting)
    runs = ("a", "b")
    bench.put(*(create(number, run_id) for number, run_id in enumerate(runs, 1)))
    bench.put(*(passed(number, run_id) for number, run_id in enumerate(runs, 3)))
    bench.put(*(optim_step(number, run_id) for number, run_id in enumerate(runs, 5)))
    outcomes = bench.run()
    assert {number: outcomes[number] for number in (5, 6)} == {5: "out_of_memory", 6: "done"}
    assert calls == [2, 1, 1]


def fork(number: int, run_id: str, new_run_id: str) -> CommandWork:
    header = ForkRun(
        request_id=number, run_id=run_id, seq=number, digest=b"", new_run_id=new_run_id
    )
    return command(number, header)


def test_a_fork_takes_gradient_and_counts_of_its_place_in_the_order(bench: Bench) -> None:
    bench.put(create(1, "r"), passed(2, "r"), fork(3, "r", "f"), passed(4, "r", (8, 8, 8)))
    again = replace(passed(2, "same"), origin=Origin(6, 1, "local/s", 6))
    bench.put(create(5, "same"), again)
    assert set(bench.run().values()) == {"done"}
    run, copy, same = (bench.runs.run(name) for name in ("r", "f", "same"))
    assert (run.num_calls, run.num_tokens) == (2, 40)
    assert (copy.num_calls, copy.num_tokens) == (same.num_calls, same.num_tokens) == (1, 16)
    gradients = [bench.store.flat(held.run, held.run.gradient_plane) for held in (copy, same, run)]
    assert torch.equal(gradients[0], gradients[1])
    assert not torch.equal(gradients[0], gradients[2])


def test_a_run_that_is_not_finite_cannot_be_forked(bench: Bench) -> None:
    bench.put(create(1, "r"))
    bench.run()
    bench.runs.run("r").is_broken = True
    bench.put(fork(2, "r", "f"), create(3, "f"))
    assert bench.run() == {1: "done", 2: "non_finite", 3: "done"}


def test_a_fork_without_room_is_busy_and_changes_nothing(bench: Bench) -> None:
    bench.put(create(1, "r"), passed(2, "r"))
    bench.run()
    blocks = bench.store.states.blocks
    while blocks.take(1) is not None:
        continue
    bench.put(fork(3, "r", "f"), optim_step(4, "r"))
    assert bench.run() == {1: "done", 2: "done", 3: "busy", 4: "done"}
    assert "f" not in bench.runs


def test_a_fork_under_a_taken_id_takes_no_room(bench: Bench) -> None:
    bench.put(create(1, "r"), create(2, "f"))
    bench.run()
    free = bench.store.states.blocks.num_free
    bench.put(fork(3, "r", "f"))
    assert bench.run()[3] == "conflict"
    assert bench.store.states.blocks.num_free == free
    assert bench.runs.run("r").run.version.references == 1


def test_a_worker_that_is_stopped_leaves_what_nobody_waits_for(bench: Bench) -> None:
    bench.put(create(1, "r"), passed(2, "r"), Stopped("enough"))
    assert bench.compute.run() == "enough"
    assert bench.wire.answers == []


def test_a_state_belongs_to_its_tenant_however_that_is_called(bench: Bench, tmp_path: Path) -> None:
    run_id = "a" * 32 + ":train:0"
    save = SaveState(request_id=2, run_id=run_id, seq=1, digest=b"", name="a")
    bench.put(create(1, run_id), CommandWork(Origin(2, 1, "lab/anna/session", 2), save))
    assert bench.run() == {1: "done", 2: "done"}
    assert [record.tenant for record in CheckpointFiles(tmp_path).scan()] == ["lab/anna"]


def counted(bench: Bench) -> WorkerCounters:
    """What is told once an optimizer step was counted and nothing else is left to do."""
    assert bench.compute.run() == "counted"
    assert bench.wire.counters is not None
    return bench.wire.counters


def test_a_worker_tells_what_it_did_when_it_has_nothing_to_do(
    decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weft.engine.worker.progress.COUNTERS_S", 0.01)
    bench = Bench(decoder, tmp_path, batch_tokens=64)
    other = replace(passed(4, "b"), origin=Origin(4, 1, "local/t", 4))
    bench.put(create(1, "a"), create(2, "b"), passed(3, "a"), other)
    bench.put(passed(5, "a", forward_only=True), optim_step(6, "a"))
    told = counted(bench)
    steps = {"train": 1, "forward": 1, "sample": 0, "optimizer": 1, "control": 2}
    assert told.steps == steps
    assert told.tokens == {"trained": 32, "forward": 16, "prefill": 0, "decoded": 0}
    assert told.tenants_sum == {"train": 2, "sample": 0}
    assert (told.used["runs"], told.total["kv_pages"]) == (2, 4)
    assert all((told.busy_s[kind] > 0) == (number > 0) for kind, number in steps.items())


def test_a_step_that_raises_is_a_failure_and_no_step(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weft.engine.worker.progress.COUNTERS_S", 0.01)
    original, calls = bench.trainer.step, []

    def step(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 1:
            raise RuntimeError("injected")
        return original(*arguments)

    monkeypatch.setattr(bench.trainer, "step", step)
    bench.put(create(1, "r"), passed(2, "r", (8,)), optim_step(3, "r"))
    told = counted(bench)
    assert (told.steps["train"], told.failures["train"], told.tokens["trained"]) == (1, 1, 8)
