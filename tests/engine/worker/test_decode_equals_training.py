"""In deterministic mode decode, prefill and training give a token the same log-probability, bitwise."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from random_models import save_random_model
from sampling_helpers import request, run, sequences
from thread_counts import threads
from train_helpers import make_trainer

from weft.engine.adapters.store import AdapterStore, WeightsVersion
from weft.engine.model.decoder import Decoder
from weft.engine.sampling.generate import Generator
from weft.engine.sampling.kv_cache import KVCache
from weft.engine.sampling.requests import SampleDone
from weft.engine.worker.commands import Origin, PassWork
from weft.engine.worker.scheduler import Passes, Slice
from weft.engine.worker.train import Trainer
from weft.engine.worker.units import cut_units

PROMPTS = (1, 2, 15, 16, 17, 64, 100, 300)
RANKS = (1, 4, 9, 16, 33, 64)
UNIT_TOKENS = 128
Floats = np.ndarray


@dataclass(frozen=True)
class Text:
    """A sampled sequence of one run, with what sampling said of its answer."""

    run_id: str
    tokens: np.ndarray
    logprobs: Floats  # of the last tokens


@dataclass
class Engine:
    """One model with runs to train and to sample from."""

    decoder: Decoder
    trainer: Trainer
    store: AdapterStore
    versions: dict[str, WeightsVersion | None]

    @classmethod
    def open(
        cls, path: Path, ranks: Sequence[int], rng: np.random.Generator, dtype: torch.dtype
    ) -> "Engine":
        decoder = Decoder.load(path, row_tile=int(rng.choice([16, 256])), dtype=dtype)
        adapters = [(rank, bool(index % 2)) for index, rank in enumerate(ranks)]
        trainer, runs = make_trainer(decoder, adapters, chunk_rows=int(rng.choice([16, 64, 256])))
        names = [f"r{index}" for index in range(len(ranks))]
        versions: dict[str, WeightsVersion | None] = {
            name: runs.run(name).run.version for name in names
        }
        return cls(decoder, trainer, runs.store, versions)

    def generator(self, page_size: int, step_tokens: int) -> Generator:
        cache = KVCache(self.decoder.config, 1 << 13, page_size, dtype=self.decoder.dtype)
        return Generator(
            self.decoder, self.store, cache, step_tokens=step_tokens, is_deterministic=True
        )


def sample(generator: Generator, engine: Engine, rng: np.random.Generator) -> list[Text]:
    """A few answers to prompts of all lengths, greedy or drawn."""
    names = [*engine.versions]
    asked = [
        request(
            place,
            rng.integers(0, engine.decoder.config.vocab_size, length).tolist(),
            version=engine.versions[names[place % len(names)]],
            max_tokens=int(rng.integers(2, 24)),
            num_samples=1 + place % 2,
            temperature=float(place % 3 > 0),
            seed=place,
        )
        for place, length in enumerate(rng.permutation(PROMPTS).tolist())
    ]
    done = run(generator, *asked)
    return [
        Text(names[place % len(names)], np.append(one.tokens, drawn.tokens), drawn.logprobs)
        for place, one in enumerate(asked)
        for drawn in sequences(done[place])
    ]


def prefill(generator: Generator, engine: Engine, texts: Sequence[Text]) -> list[Floats]:
    """Log-probability of each token but the first, as prompts."""
    asked = [
        request(
            place,
            text.tokens.tolist(),
            version=engine.versions[text.run_id],
            max_tokens=1,
            prompt_logprobs=True,
        )
        for place, text in enumerate(texts)
    ]
    done = run(generator, *asked)
    found = []
    for place in range(len(texts)):
        outcome = done[place]
        assert isinstance(outcome, SampleDone)
        found.append(outcome.arrays()["prompt_logprobs"][1:])
    return found


def passes(texts: Sequence[Text], forward_only: bool, group: int) -> Iterator[PassWork]:
    """Commands of up to `group` texts of a run each."""
    for run_id in sorted({text.run_id for text in texts}):
        own = [place for place, text in enumerate(texts) if text.run_id == run_id]
        for first in range(0, len(own), group):
            places = own[first : first + group]
            lengths = [len(texts[place].tokens) - 1 for place in places]
            yield PassWork(
                origin=Origin(places[0], 1, run_id, places[0]),
                run_id=run_id,
                loss_fn="cross_entropy",
                loss_fn_config={},
                forward_only=forward_only,
                part_outputs=(sum(lengths),),
                tokens=np.concatenate([texts[p].tokens[:-1] for p in places]).astype(np.int32),
                lengths=np.array(lengths, np.int32),
                targets=np.concatenate([texts[p].tokens[1:] for p in places]).astype(np.int32),
                inputs={"weights": np.ones(sum(lengths), np.float32)},
                units=cut_units(lengths, UNIT_TOKENS),
            )


def train(engine: Engine, texts: Sequence[Text], forward_only: bool, group: int) -> list[Floats]:
    """The same by training passes of all runs in one batch."""
    works = list(passes(texts, forward_only, group))
    assert len({work.run_id for work in works}) >= 3
    slices = tuple(Slice(work.origin.dispatch_id, 0, len(work.units), True) for work in works)
    decision = Passes(slices, not forward_only, sum(len(work.tokens) for work in works))
    assert not engine.trainer.step(decision, works).failures
    found: dict[int, Floats] = {}
    for work in works:
        own = [place for place, text in enumerate(texts) if text.run_id == work.run_id]
        first = own.index(work.origin.dispatch_id)
        parts = np.split(engine.trainer.collect(work)[0], np.cumsum(work.lengths)[:-1])
        found.update(zip(own[first:], [part.copy() for part in parts], strict=False))
    return [found[place] for place in range(len(texts))]


@pytest.mark.parametrize("seed", range(8))
def test_decode_prefill_and_training_give_the_same_bits(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    save_random_model(
        tmp_path,
        ("qwen3", "llama", "qwen2")[seed % 3],
        vocab_size=int(rng.choice([96, 97, 512])),
        num_kv_heads=(1, 2, 4)[seed // 3 % 3],
        max_context=512,
    )
    dtype = torch.bfloat16 if seed % 4 == 3 else torch.float32
    engine = Engine.open(tmp_path, rng.choice(RANKS, 4).tolist(), rng, dtype)
    with threads(1 + seed % 3):
        texts = sample(engine.generator(int(rng.choice([4, 16])), 2048), engine, rng)
        scored = prefill(engine.generator(16, int(rng.choice([50, 300, 2048]))), engine, texts)
        seen = train(engine, texts, forward_only=True, group=1)
        trained = train(engine, texts, forward_only=False, group=3)
    for place, text in enumerate(texts):
        by_training = trained[place]
        np.testing.assert_array_equal(seen[place], by_training, err_msg="forward alone")
        np.testing.assert_array_equal(scored[place], by_training, err_msg="prefill")
        answer = by_training[-len(text.logprobs) :]
        np.testing.assert_array_equal(text.logprobs, answer, err_msg="decode")


def test_the_base_model_has_the_bits_of_an_adapter_that_adds_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    save_random_model(tmp_path, max_context=512)
    engine = Engine.open(tmp_path, (4, 16, 64), rng, torch.float32)
    for number, name in enumerate(("r0", "r1", "r2")):
        run_ = engine.trainer._runs.run(name).run
        zeros = engine.store.export_weights(run_.version)
        tensors = {key: value * (not key.endswith("lora_b")) for key, value in zeros.items()}
        engine.store.import_state(run_, tensors, number, with_optimizer=False)
    engine.versions = dict.fromkeys(engine.versions)
    texts = sample(engine.generator(16, 2048), engine, rng)
    scored = prefill(engine.generator(4, 100), engine, texts)
    trained = train(engine, texts, forward_only=True, group=2)
    for text, by_prefill, by_training in zip(texts, scored, trained, strict=True):
        np.testing.assert_array_equal(by_prefill, by_training)
        np.testing.assert_array_equal(text.logprobs, by_training[-len(text.logprobs) :])
