"""Steps that are done before anybody asks for one: they leave nothing behind."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from random_models import save_random_model

from weft.client.errors import Busy, EngineFailed
from weft.engine.adapters.head import Head
from weft.engine.adapters.store import AdapterStore
from weft.engine.model.decoder import Decoder
from weft.engine.sampling.generate import Generator
from weft.engine.sampling.kv_cache import KVCache
from weft.engine.trace import Trace
from weft.engine.worker.commands import PassWork
from weft.engine.worker.runs import RunTable
from weft.engine.worker.scheduler import Passes
from weft.engine.worker.train import Outcome, Trainer
from weft.engine.worker.warming import warm_up
from weft.kernels.gpu.variants import UnknownVariant

MAX_TOKENS = 64


@dataclass
class Parts:
    """What is warmed."""

    decoder: Decoder
    store: AdapterStore
    runs: RunTable
    trainer: Trainer
    generator: Generator

    def warm_up(self) -> None:
        warm_up(self.trainer, self.generator, self.runs, MAX_TOKENS)

    def create(self) -> torch.Tensor:
        """The initial weights of a new run."""
        families = {"train_attn": True, "train_mlp": True, "train_unembed": True}
        run = self.store.create(rank=4, alpha=8.0, seed=1, **families)
        return self.store.version_flat(run.version)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    path = tmp_path_factory.mktemp("model")
    save_random_model(path, max_context=512)
    return Decoder.load(path)


@pytest.fixture
def parts(decoder: Decoder) -> Parts:
    store = AdapterStore(
        decoder.sites, device="cpu", dtype=torch.float32, state_bytes=1 << 24, weights_bytes=1 << 22
    )
    runs = RunTable(store, ())
    trainer = Trainer(
        decoder,
        runs,
        Head(decoder.head, len(decoder.sites) - 1),
        Trace(),
        is_deterministic=False,
        recompute_above_tokens=1 << 20,
    )
    cache = KVCache(decoder.config, num_pages=8, page_size=16, device="cpu", dtype=torch.float32)
    return Parts(decoder, store, runs, trainer, Generator(decoder, store, cache))


def test_it_trains_steps_and_samples(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[Any] = []
    monkeypatch.setattr(
        "weft.engine.worker.warming.step",
        lambda store, due: steps.append([run.has_gradient for run, _ in due]),
    )
    parts.warm_up()
    assert steps == [[True]]
    assert (parts.generator.num_prefilled, parts.generator.num_decoded) == (16, 2)


def test_common_ranks_and_a_long_pass_are_compiled(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, bool, int]] = []
    plain = parts.trainer.step

    def step(passes: Passes, works: list[PassWork]) -> Outcome:
        rank = parts.runs.run(works[0].run_id).run.rank
        seen.append((rank, passes.backward, passes.num_tokens))
        return plain(passes, works)

    monkeypatch.setattr(parts.trainer, "step", step)
    warm_up(parts.trainer, parts.generator, parts.runs, 512, compiles=True)
    assert seen == [
        (rank, is_backward, tokens)
        for rank in (8, 32, 64)
        for is_backward, tokens in ((True, 16), (False, 320))
    ]
    assert parts.runs.counts == {"runs": 0, "samplers": 0}


def test_nothing_is_left(parts: Parts) -> None:
    before, memory = torch.get_rng_state(), parts.store.memory
    parts.warm_up()
    assert parts.store.memory == memory
    assert parts.runs.counts == {"runs": 0, "samplers": 0}
    assert parts.generator.memory["kv_pages"][0] == 0
    assert torch.equal(torch.get_rng_state(), before)
    parts.store.check_integrity([])
    parts.generator.check_integrity()


def test_a_run_begins_as_without_it(parts: Parts) -> None:
    expected = parts.create().clone()
    parts.warm_up()
    assert torch.equal(parts.create(), expected)


def test_a_step_that_fails_ends_the_loading(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("a kernel failed")

    memory = parts.store.memory
    monkeypatch.setattr(parts.trainer, "step", fail)
    with pytest.raises(EngineFailed, match=r"a kernel failed$"):
        parts.warm_up()
    assert parts.store.memory == memory


def test_a_kernel_that_there_is_not_is_named_with_a_way_out(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise UnknownVariant("attention bf16, heads of 512")

    monkeypatch.setattr(parts.trainer, "step", fail)
    parts.store.uses_triton = True
    with pytest.raises(EngineFailed, match=r"UnknownVariant: .* heads of 512 \(kernels torch"):
        parts.warm_up()


def test_a_sample_that_fails_ends_the_loading(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("a kernel failed")

    monkeypatch.setattr("weft.engine.sampling.generate.plan_step", fail)
    with pytest.raises(EngineFailed, match="cannot be sampled"):
        parts.warm_up()


def test_a_worker_without_room_for_a_run_still_serves(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def busy(**_: Any) -> None:
        raise Busy("no room for the training state")

    monkeypatch.setattr(parts.store, "create", busy)
    parts.warm_up()
    assert "no room for the training state" in caplog.text
