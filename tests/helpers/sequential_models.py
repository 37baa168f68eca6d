"""A plain form of a sequential model for the tests of generation: transformers' code and cache.

Every linear is a group of its own. No training, no row tiles.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sampling_helpers import Bench, V
from torch import Tensor, nn
from transformers import DynamicCache, Qwen3NextConfig, Qwen3NextForCausalLM

from weft.engine.adapters.store import AdapterStore, WeightsVersion
from weft.engine.adapters.targets import Targets
from weft.engine.hosted.load import load_hosted
from weft.engine.model.config import Site
from weft.engine.model.linear import DenseLinear, FrozenLinears, Linears
from weft.engine.sampling.sequential import SequentialGenerator

STATE_BYTES = 1000  # of a state without tokens, as the tests count
TOKEN_BYTES = 10  # that each token adds


@dataclass
class Facts:
    """Numbers of a model; see `ModelFacts`."""

    model_type: str
    vocab_size: int
    width: int
    max_context: int
    num_layers: int = 0
    num_kv_heads: int = 0
    head_dim: int = 0
    eos_token_ids: tuple[int, ...] = ()


class PlainSequential:
    """A transformers model with its linears swapped; counts passes, and fails when told to."""

    runs_on = "sequential"
    uses_triton = False
    logit_softcap = 0.0
    continues_in_chunks = True
    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self, hf: Any) -> None:
        hf = copy.deepcopy(hf)
        self.config = Facts(
            hf.config.model_type,
            hf.config.vocab_size,
            hf.config.hidden_size,
            hf.config.max_position_embeddings,
        )
        self._model = hf.model
        self._linears: Linears = FrozenLinears()
        self.head = DenseLinear(hf.lm_head.weight.detach())
        self.sites: list[Site] = []
        linears = [pair for pair in hf.model.named_modules() if isinstance(pair[1], nn.Linear)]
        for name, linear in linears:
            hf.model.set_submodule(name, _Swapped(self, linear, len(self.sites)))
            self.sites.append(_site(f"model.{name}", linear, _family(name)))
        self.sites.append(_site("lm_head", hf.lm_head, "unembed"))
        self.passes: list[int] = []  # tokens of each
        self.copies = 0
        self.poison = -1  # a token that makes a pass fail
        self.max_tokens = 10**9  # of a pass, more do not fit into memory
        self.max_copies = 10**9

    def use(self, index: int, base: DenseLinear, x_D: Tensor) -> Tensor:
        """One linear, with whatever adapter the pass has."""
        (y_TO,) = self._linears.group(x_D.flatten(0, -2), (base,), (index,))
        return y_TO.view(*x_D.shape[:-1], y_TO.shape[-1])

    def new_state(self) -> DynamicCache:
        """See `SequentialModel`."""
        return DynamicCache(config=self._model.config)

    def copy_state(self, state: DynamicCache) -> DynamicCache:
        """See `SequentialModel`."""
        self.copies += 1
        if self.copies > self.max_copies:
            raise torch.OutOfMemoryError("out of memory")
        return copy.deepcopy(state)

    def state_bytes(self, num_tokens: int) -> int:
        """See `SequentialModel`."""
        return STATE_BYTES + TOKEN_BYTES * num_tokens

    def advance(self, state: DynamicCache, tokens_L: Tensor, linears: Linears) -> Tensor:
        """See `SequentialModel`."""
        assert not torch.is_grad_enabled()
        self.passes.append(len(tokens_L))
        if len(tokens_L) > self.max_tokens:
            raise torch.OutOfMemoryError("out of memory")
        self._linears = linears
        output = self._model(input_ids=tokens_L[None], past_key_values=state, use_cache=True)
        if (tokens_L == self.poison).any():
            raise RuntimeError("a kernel failed")
        hidden_LD: Tensor = output.last_hidden_state[0]
        return hidden_LD

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """See `BaseModel`."""
        raise AssertionError("a sequential generator only advances states")


class _Swapped(nn.Module):
    def __init__(self, owner: PlainSequential, linear: nn.Linear, index: int) -> None:
        super().__init__()
        bias = None if linear.bias is None else linear.bias.detach()
        self._owner = (owner,)  # in a tuple, so that it is no child
        self._base = DenseLinear(linear.weight.detach(), bias)
        self._index = index

    def forward(self, x_D: Tensor) -> Tensor:
        return self._owner[0].use(self._index, self._base, x_D)


def _family(name: str) -> str:
    return "mlp" if ".mlp." in name else "attn"


def _site(name: str, linear: nn.Linear, family: str) -> Site:
    layer = int(name.split(".")[2]) if "layers." in name else -1
    return Site(layer, name, linear.in_features, linear.out_features, name, family, name)


def random_hybrid(seed: int = 0, **fields: Any) -> Any:
    """A small Qwen3-Next: two layers of gated delta rule, then one of attention; no experts."""
    config = Qwen3NextConfig(
        vocab_size=V,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        layer_types=["linear_attention", "linear_attention", "full_attention"],
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        max_position_embeddings=128,
        mlp_only_layers=[0, 1, 2],
        tie_word_embeddings=False,
        **fields,
    )
    model = Qwen3NextForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.1 * noise if parameter.ndim > 1 and "conv" not in name else noise)
    return model


@dataclass
class SequentialBench(Bench):
    """A model that is sampled sequence by sequence, and the same in transformers."""

    model: Any

    @classmethod
    def wrapping(cls, hf: Any) -> "SequentialBench":
        """A bench around a module of transformers."""
        return cls.around(hf, PlainSequential(hf))

    @classmethod
    def hosting(cls, hf: Any, path: Path) -> "SequentialBench":
        """A bench around the same as the engine loads it, by way of `path`."""
        hf.save_pretrained(path)
        return cls.around(hf, load_hosted(path))

    @classmethod
    def around(cls, hf: Any, model: Any) -> "SequentialBench":
        """A bench around a sequential model."""
        store = AdapterStore(
            model.sites,
            device="cpu",
            dtype=torch.float32,
            state_bytes=1 << 24,
            weights_bytes=1 << 24,
        )
        return cls(hf, model, store)

    def sequential(self, state_bytes: int = 1 << 20, **fields: Any) -> SequentialGenerator:
        """A generator over a model whose counters are fresh."""
        self.model.passes, self.model.copies = [], 0
        return SequentialGenerator(self.model, self.store, state_bytes=state_bytes, **fields)

    def adopt(
        self, others: Bench, versions: Sequence[WeightsVersion | None]
    ) -> list[WeightsVersion | None]:
        """Versions with the weights of those of another bench."""
        return [
            version
            and self.store.import_weights(
                others.store.export_weights(version),
                rank=version.rank,
                alpha=version.scale * version.rank,
                train_attn=bool(version.targets & Targets.ATTN),
                train_mlp=bool(version.targets & Targets.MLP),
                train_unembed=bool(version.targets & Targets.UNEMBED),
            )
            for version in versions
        ]
