"""What a plan says that a layer keeps for backward, against what it keeps."""

from pathlib import Path
from typing import Any

import interpreter
import pytest
import torch
from random_models import save_random_model
from torch import Tensor

from weft.engine.model.attention_form import AttentionForm
from weft.engine.model.decoder import Decoder
from weft.engine.model.linear import BaseLinear, FrozenLinears
from weft.engine.worker.planning import PROJECTIONS, layer_cost

NUM_TOKENS = 3


class _Keep(torch.autograd.Function):
    """The first tensor, with all of them kept for backward."""

    @staticmethod
    def forward(ctx: Any, *xs: Tensor) -> Tensor:
        ctx.save_for_backward(*xs)
        return xs[0]


def keep(*xs: Tensor) -> Tensor:
    kept: Tensor = _Keep.apply(*xs)  # type: ignore[no-untyped-call]
    return kept


class KeepingLinears(FrozenLinears):
    """Linears whose adapters need their input for backward."""

    def group(
        self, x_TD: Tensor, bases: tuple[BaseLinear, ...], sites: tuple[int, ...]
    ) -> tuple[Tensor, ...]:
        return super().group(keep(x_TD), bases, sites)


class KeepingAttention:
    """Attention that needs what it reads; what it returns is kept by the linears after it."""

    def attend(
        self,
        layer: int,
        q_THK: Tensor,
        k_TGK: Tensor,
        v_TGK: Tensor,
        form: AttentionForm | None = None,
    ) -> Tensor:
        return keep(q_THK, k_TGK, v_TGK).clone()


def kept_elements(decoder: Decoder) -> float:
    """Elements per token that one forward pass keeps for backward."""
    decoder.embed.requires_grad_()
    sizes: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        if x.ndim and len(x) == NUM_TOKENS:
            sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    tokens = torch.arange(NUM_TOKENS, device=decoder.device)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        hidden = decoder.forward(tokens, tokens, KeepingAttention(), KeepingLinears())
    assert hidden.requires_grad
    return sum(sizes.values()) / NUM_TOKENS / decoder.dtype.itemsize


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_a_layer_on_the_triton_kernels_keeps_what_the_plan_says(tmp_path: Path, kind: str) -> None:
    kept = []
    for num_layers in (1, 2):
        save_random_model(tmp_path / str(num_layers), kind, num_layers=num_layers)
        decoder = Decoder.load(
            tmp_path / str(num_layers), device=interpreter.kernel_device(), uses_triton=True
        )
        kept.append(kept_elements(decoder))
    planned = layer_cost(decoder.config, uses_triton=True).kept - PROJECTIONS
    assert kept[1] - kept[0] == planned + 2  # a number per row and norm


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_a_layer_on_pytorch_keeps_less_than_the_plan_says(tmp_path: Path, kind: str) -> None:
    kept = []
    for num_layers in (1, 2):
        save_random_model(tmp_path / str(num_layers), kind, num_layers=num_layers)
        decoder = Decoder.load(tmp_path / str(num_layers))
        kept.append(kept_elements(decoder))
    planned = layer_cost(decoder.config, uses_triton=False).kept
    assert 1 < planned / (kept[1] - kept[0]) < 2
