"""A small random model with adapters, ready to sample from, for the tests of generation."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from random_models import save_random_model
from torch import Tensor

from weft.engine.adapters.store import AdapterStore, WeightsVersion
from weft.engine.model.decoder import Decoder
from weft.engine.sampling.base_generator import BaseGenerator
from weft.engine.sampling.generate import Generator
from weft.engine.sampling.kv_cache import KVCache
from weft.engine.sampling.requests import (
    SampleDone,
    SampledSequence,
    SampleFailed,
    SampleRequest,
)

ALPHA = 32.0
V = 97  # vocabulary of the tests' models


@dataclass(frozen=True)
class Facts:
    """Numbers of a model that there is none of."""

    model_type: str = ""
    vocab_size: int = V
    width: int = 32
    num_layers: int = 2
    num_kv_heads: int = 2
    head_dim: int = 16
    max_context: int = 256
    eos_token_ids: tuple[int, ...] = ()


@dataclass
class Bench:
    """One model twice, here and in transformers, and a store of adapters."""

    hf: Any
    model: Decoder
    store: AdapterStore

    @classmethod
    def random(
        cls,
        path: Path,
        kind: str = "qwen3",
        row_tile: int = 0,
        run_dtype: torch.dtype = torch.float32,
        **fields: Any,
    ) -> "Bench":
        hf = save_random_model(path, kind, **fields)
        model = Decoder.load(path, row_tile=row_tile, dtype=run_dtype)
        store = AdapterStore(
            model.sites,
            device="cpu",
            dtype=run_dtype,
            state_bytes=1 << 24,
            weights_bytes=1 << 24,
        )
        return cls(hf, model, store)

    def generator(
        self, num_pages: int = 256, page_size: int = 4, model: Any = None, **fields: Any
    ) -> Generator:
        model = model or self.model
        cache = KVCache(self.model.config, num_pages, page_size, dtype=self.model.dtype)
        return Generator(model, self.store, cache, **fields)

    def adapter(
        self, rank: int, seed: int, *, attn: bool = True, mlp: bool = True, unembed: bool = True
    ) -> WeightsVersion:
        """A version with random weights that change the model noticeably."""
        targets = {"train_attn": attn, "train_mlp": mlp, "train_unembed": unembed}
        run = self.store.create(rank=rank, alpha=ALPHA, seed=seed, **targets)
        tensors = self.store.export_weights(run.version)
        random = torch.Generator().manual_seed(seed)
        for name, tensor in tensors.items():
            if name.endswith("lora_b"):
                tensor.copy_(torch.randn(tensor.shape, generator=random) * 0.02 * rank**0.5)
        self.store.drop(run)
        return self.store.import_weights(tensors, rank=rank, alpha=ALPHA, **targets)

    def merged(self, version: WeightsVersion | None) -> Any:
        """The transformers model with an adapter added to its weights."""
        if version is None:
            return self.hf
        hf = copy.deepcopy(self.hf)
        tensors = self.store.export_weights(version)
        for site in self.model.sites:
            if f"{site.name}.lora_a" in tensors:
                delta = tensors[f"{site.name}.lora_b"] @ tensors[f"{site.name}.lora_a"]
                with torch.no_grad():
                    hf.get_submodule(site.name).weight += version.scale * delta
        return hf


@torch.no_grad()
def hf_logits(hf: Any, tokens: list[int]) -> Tensor:
    """Logits [tokens, V] of one sequence without any cache."""
    logits: Tensor = hf(torch.tensor([tokens])).logits[0]
    return logits


def hf_greedy(hf: Any, prompt: list[int], count: int) -> list[int]:
    """What `generate` answers without sampling and without end of sequence."""
    hf.generation_config.eos_token_id = None
    out = hf.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        max_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
    )
    answer: list[int] = out[0, len(prompt) :].tolist()
    return answer


def prompt_of(length: int, seed: int = 0) -> list[int]:
    tokens: list[int] = np.random.default_rng([seed, length]).integers(0, V, length).tolist()
    return tokens


def request(key: object, prompt: Sequence[int], **fields: Any) -> SampleRequest:
    values: dict[str, Any] = {"num_samples": 1, "max_tokens": 8, "temperature": 1.0, "seed": 0}
    return SampleRequest(key=key, tokens=np.array(prompt), **(values | fields))


def run(generator: BaseGenerator, *requests: SampleRequest) -> dict[Any, SampleDone | SampleFailed]:
    """Submit all, step until nothing is left; pages are checked after every step."""
    for each in requests:
        generator.submit(each)
    return drain(generator)


def drain(generator: BaseGenerator) -> dict[Any, SampleDone | SampleFailed]:
    outcomes: dict[Any, SampleDone | SampleFailed] = {}
    for _ in range(2000):
        if not generator.has_work:
            break
        for outcome in generator.step():
            assert outcome.key not in outcomes
            outcomes[outcome.key] = outcome
        generator.check_integrity()
    assert not generator.has_work
    assert generator._admission.num_reserved == 0
    return outcomes


def sequences(outcome: SampleDone | SampleFailed) -> tuple[SampledSequence, ...]:
    assert isinstance(outcome, SampleDone), outcome
    return outcome.sequences


def tokens_of(outcome: SampleDone | SampleFailed) -> list[list[int]]:
    return [sequence.tokens.tolist() for sequence in sequences(outcome)]


class Watched:
    """The model with a look at every forward pass, which may raise."""

    uses_triton = False

    def __init__(self, bench: Bench) -> None:
        self.config, self.sites, self.head = (
            bench.model.config,
            bench.model.sites,
            bench.model.head,
        )
        self.device, self.logit_softcap = bench.model.device, bench.model.logit_softcap
        self._model = bench.model
        self.rows: list[int] = []
        self.max_rows = 10**9
        self.poison = -1

    def forward(self, tokens_T: Tensor, *args: Any) -> Tensor:
        self.rows.append(len(tokens_T))
        if len(tokens_T) > self.max_rows:
            raise torch.OutOfMemoryError("out of memory")
        hidden_TD = self._model.forward(tokens_T, *args)
        if (tokens_T == self.poison).any():
            raise RuntimeError("a kernel failed")
        return hidden_TD
