"""The decoder of the Llama and Qwen family: one forward pass for training, prefill and decode.

What attention looks at and which adapters the linears carry are handed in.
T tokens, D model width, H query heads, G key and value heads, K head width, F feed-forward width.
"""

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .attention import Attention
from .checkpoint_files import read_weights
from .config import MODULES, ModelConfig, linear_name
from .linear import BaseLinear, Linears, base_linear
from .pieces import Pieces, TorchPieces
from .rope import Rope

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Group:
    """Linears that read the same input, and their places in `ModelConfig.sites()`."""

    bases: tuple[BaseLinear, ...]
    sites: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Layer:
    """The frozen parts of one decoder layer."""

    index: int
    attention_norm_D: Tensor
    qkv: Group
    q_norm_K: Tensor | None
    k_norm_K: Tensor | None
    o: Group
    mlp_norm_D: Tensor
    gate_up: Group
    down: Group


class Decoder:
    """A frozen base model; holds weights and nothing that changes.

    Args:
        weights: the tensors of `expected_tensors(config)`, on one device in one dtype.
        row_tile: 0, or the rows per matmul in deterministic mode; see `DenseLinear`.
        uses_triton: compute by the Triton kernels, for a CUDA device.
    """

    runs_on = "native"
    logit_softcap = 0.0

    def __init__(
        self,
        config: ModelConfig,
        weights: dict[str, Tensor],
        row_tile: int = 0,
        uses_triton: bool = False,
    ) -> None:
        self.config = config
        self.uses_triton = uses_triton
        self.notes = [config.context_note] if config.context_note else []
        self.sites = config.sites()
        self.embed = weights["model.embed_tokens.weight"]
        self.device, self.dtype = self.embed.device, self.embed.dtype
        head = self.embed if config.is_tied else weights["lm_head.weight"]
        linear = partial(base_linear, row_tile=row_tile, uses_triton=uses_triton)
        self.head = linear(head)
        self._pieces = _pieces(uses_triton, is_deterministic=row_tile > 0)
        self._norm_D = weights["model.norm.weight"]
        self._rope = Rope(config, self.device, self.dtype)
        self._layers = [_layer(config, weights, i, linear) for i in range(config.num_layers)]

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        row_tile: int = 0,
        uses_triton: bool = False,
        on_progress: Callable[[float], None] = lambda fraction: None,
    ) -> "Decoder":
        """Read a Hugging Face directory; see `ModelConfig.from_directory` and `read_weights`."""
        config = ModelConfig.from_directory(path)
        if config.context_note:
            log.warning("%s: %s", path, config.context_note)
        weights = read_weights(path, config, device=device, dtype=dtype, on_progress=on_progress)
        return cls(config, weights, row_tile, uses_triton)

    def forward(
        self,
        tokens_T: Tensor,
        positions_T: Tensor,
        attention: Attention,
        linears: Linears,
        *,
        checkpoint_layers: Collection[int] = (),
    ) -> Tensor:
        """Return the hidden states after the final norm, [T, D]; the head is not applied.

        Args:
            tokens_T: token ids, int64, below `vocab_size`.
            positions_T: position of each token in its own sequence, int64, below `max_context`.
            attention: which keys each token sees.
            linears: the linears with or without adapters. In the layers of `checkpoint_layers`
                its `group` is called again during backward, with equal inputs.
            checkpoint_layers: layers that keep only their input and compute the rest again for
                backward, with the same bits.
        """
        x_TD = self.embed.index_select(0, tokens_T)
        angles = self._rope.at(positions_T)
        delta_TD: Tensor | None = None  # of the last layer: the next norm adds it
        for layer in self._layers:
            run = partial(self._run_layer, layer, angles, attention, linears)
            if layer.index in checkpoint_layers:
                if delta_TD is not None:
                    x_TD = x_TD + delta_TD  # one tensor is kept instead of two
                x_TD, delta_TD = checkpoint(
                    run,
                    x_TD,
                    None,
                    use_reentrant=False,
                    preserve_rng_state=False,
                    determinism_check="none",
                )
            else:
                x_TD, delta_TD = run(x_TD, delta_TD)
        return self._pieces.add_rms_norm(x_TD, delta_TD, self._norm_D, self.config.rms_eps)[1]

    def _run_layer(
        self,
        layer: Layer,
        angles: tuple[Tensor, Tensor],
        attention: Attention,
        linears: Linears,
        x_TD: Tensor,
        delta_TD: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """From a residual and what is still to be added to it, to the same after the layer."""
        eps, head_dim, pieces = self.config.rms_eps, self.config.head_dim, self._pieces
        x_TD, normed_TD = pieces.add_rms_norm(x_TD, delta_TD, layer.attention_norm_D, eps)
        q, k, v = linears.group(normed_TD, layer.qkv.bases, layer.qkv.sites)
        q_THK, k_TGK, v_TGK = (
            part.view(len(x_TD), part.shape[1] // head_dim, head_dim) for part in (q, k, v)
        )
        q_THK, k_TGK = pieces.rotated(q_THK, k_TGK, layer.q_norm_K, layer.k_norm_K, eps, angles)
        mixed_THK = attention.attend(layer.index, q_THK, k_TGK, v_TGK)
        (delta_TD,) = linears.group(mixed_THK.flatten(1), layer.o.bases, layer.o.sites)
        x_TD, normed_TD = pieces.add_rms_norm(x_TD, delta_TD, layer.mlp_norm_D, eps)
        inner_TF = linears.gated(normed_TD, layer.gate_up.bases, layer.gate_up.sites, pieces)
        (delta_TD,) = linears.group(inner_TF, layer.down.bases, layer.down.sites)
        return x_TD, delta_TD


def _pieces(uses_triton: bool, is_deterministic: bool) -> Pieces:
    if not uses_triton:
        return TorchPieces(is_deterministic)
    from .gpu_pieces import TritonPieces  # imports triton

    return TritonPieces()


def _layer(
    config: ModelConfig,
    weights: dict[str, Tensor],
    index: int,
    linear: Callable[[Tensor, Tensor | None], BaseLinear],
) -> Layer:
    def group(*modules: str) -> Group:
        names = [linear_name(index, module) for module in modules]
        bases = tuple(
            linear(weights[f"{name}.weight"], weights.get(f"{name}.bias")) for name in names
        )
        return Group(bases, tuple(config.site_index(index, module) for module in modules))

    prefix = f"model.layers.{index}"
    return Layer(
        index=index,
        attention_norm_D=weights[f"{prefix}.input_layernorm.weight"],
        qkv=group(*MODULES[:3]),
        q_norm_K=weights.get(f"{prefix}.self_attn.q_norm.weight"),
        k_norm_K=weights.get(f"{prefix}.self_attn.k_norm.weight"),
        o=group("o"),
        mlp_norm_D=weights[f"{prefix}.post_attention_layernorm.weight"],
        gate_up=group("gate", "up"),
        down=group("down"),
    )
