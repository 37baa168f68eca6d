"""A small random model with adapters, ready to sample from, for the tests of generation."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from random_models import save_random_model
from torch import Tensor

from weft.engine.adapters import AdapterStore, WeightsVersion
from weft.engine.checkpoint_files import linear_name
from weft.engine.config import UNEMBED
from weft.engine.generate import Generator
from weft.engine.kv_cache import KVCache
from weft.engine.model import Decoder

ALPHA = 32.0


@dataclass
class Bench:
    """One model twice, here and in transformers, and a store of adapters."""

    hf: Any
    model: Decoder
    store: AdapterStore

    @classmethod
    def random(cls, path: Path, kind: str = "qwen3", row_tile: int = 0, **fields: Any) -> "Bench":
        hf = save_random_model(path, kind, **fields)
        model = Decoder.load(path, row_tile=row_tile)
        store = AdapterStore(
            model.sites,
            device="cpu",
            dtype=torch.float32,
            state_bytes=1 << 24,
            weights_bytes=1 << 24,
        )
        return cls(hf, model, store)

    def generator(
        self, num_pages: int = 256, page_size: int = 4, model: Any = None, **fields: Any
    ) -> Generator:
        model = model or self.model
        cache = KVCache(self.model.config, num_pages, page_size)
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
                name = "lm_head" if site.name == UNEMBED else linear_name(site.layer, site.module)
                delta = tensors[f"{site.name}.lora_b"] @ tensors[f"{site.name}.lora_a"]
                with torch.no_grad():
                    hf.get_submodule(name).weight += version.scale * delta
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
