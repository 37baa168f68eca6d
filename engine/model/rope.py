"""Rotary positions: the table of angles, and turning query and key heads by it.

T tokens, H heads, K head width, J = K / 2 rotated pairs, P positions.
"""

import math
from typing import Any

import torch
from torch import Tensor

from .config import ModelConfig
from .rope_config import LinearScaling, Llama3Scaling, YarnScaling


class Rope:
    """Cosines and sines of every position up to the context, computed once.

    A row is looked up, never recomputed, so that its bits depend on the position alone.
    """

    def __init__(self, config: ModelConfig, device: torch.device, dtype: torch.dtype) -> None:
        frequencies_J = inverse_frequencies(config)
        scaling, factor = config.rope_scaling, 1.0
        if isinstance(scaling, YarnScaling):
            factor = scaling.attention_factor
        angles_PJ = torch.arange(config.max_context).float()[:, None] * frequencies_J
        self._cos_PJ = angles_PJ.cos().mul_(factor).to(device, dtype)
        self._sin_PJ = angles_PJ.sin().mul_(factor).to(device, dtype)

    def at(self, positions_T: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines, [T, 1, J] each, to be used for every layer of one forward pass."""
        cos_TJ = self._cos_PJ.index_select(0, positions_T)
        sin_TJ = self._sin_PJ.index_select(0, positions_T)
        return cos_TJ.unsqueeze(1), sin_TJ.unsqueeze(1)


def rope_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of the two tables."""
    return config.max_context * config.head_dim * dtype.itemsize


def inverse_frequencies(config: ModelConfig) -> Tensor:
    """Radians per position of each rotated pair, [J] float32.

    Source: transformers, `modeling_rope_utils.py`.
    """
    exponents_J = torch.arange(0, config.head_dim, 2).float() / config.head_dim
    frequencies_J = 1.0 / (config.rope_theta**exponents_J)
    scaling = config.rope_scaling
    if isinstance(scaling, LinearScaling):
        return frequencies_J / scaling.factor
    if isinstance(scaling, Llama3Scaling):
        kept_J = _kept_by_wavelength(frequencies_J, scaling)
    elif isinstance(scaling, YarnScaling):
        kept_J = _kept_by_pair(config, scaling)
    else:
        return frequencies_J
    return (1 - kept_J) * frequencies_J / scaling.factor + kept_J * frequencies_J


def _kept_by_wavelength(frequencies_J: Tensor, scaling: Llama3Scaling) -> Tensor:
    """Share of each pair that is not stretched: linear in the turns over the original context."""
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    turns_J = scaling.original_max_context * frequencies_J / (2 * math.pi)
    return ((turns_J - low) / (high - low)).clamp(0, 1)


def _kept_by_pair(config: ModelConfig, scaling: YarnScaling) -> Tensor:
    """The same, linear in the number of the pair between two numbers of turns."""

    def pair_of(turns: float) -> float:
        ratio = scaling.original_max_context / (turns * 2 * math.pi)
        return config.head_dim * math.log(ratio) / (2 * math.log(config.rope_theta))

    first, last = pair_of(scaling.beta_fast), pair_of(scaling.beta_slow)
    if scaling.is_truncated:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, config.head_dim - 1)
    if first == last:
        last += 0.001
    pairs_J = torch.arange(config.head_dim // 2, dtype=torch.float32)
    return 1 - ((pairs_J - first) / (last - first)).clamp(0, 1)


def rotate(x_THK: Tensor, cos_T1J: Tensor, sin_T1J: Tensor) -> Tensor:
    """Turn each pair (x[j], x[j + K/2]) by its position's angle; differentiable in x."""
    rotated: Tensor = _Rotate.apply(x_THK, cos_T1J, sin_T1J)  # type: ignore[no-untyped-call]
    return rotated


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_THK: Tensor, cos_T1J: Tensor, sin_T1J: Tensor) -> Tensor:
        ctx.save_for_backward(cos_T1J, sin_T1J)
        return _turned(x_THK, cos_T1J, sin_T1J, 1)

    @staticmethod
    def backward(ctx: Any, dy_THK: Tensor) -> tuple[Tensor, None, None]:
        cos_T1J, sin_T1J = ctx.saved_tensors
        return _turned(dy_THK, cos_T1J, sin_T1J, -1), None, None


def _turned(x_THK: Tensor, cos_T1J: Tensor, sin_T1J: Tensor, sign: int) -> Tensor:
    half = x_THK.shape[-1] // 2
    first_THJ, second_THJ = x_THK[..., :half], x_THK[..., half:]
    y_THK = torch.empty_like(x_THK, memory_format=torch.contiguous_format)
    torch.mul(first_THJ, cos_T1J, out=y_THK[..., :half])
    torch.mul(second_THJ, cos_T1J, out=y_THK[..., half:])
    y_THK[..., :half].addcmul_(second_THJ, sin_T1J, value=-sign)
    y_THK[..., half:].addcmul_(first_THJ, sin_T1J, value=sign)
    return y_THK
