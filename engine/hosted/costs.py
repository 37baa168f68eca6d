"""How much memory a hosted model keeps between forward and backward: measured, on short sequences.

The modelling code saves what it likes, so nothing is computed from its config.
"""

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from ..model.attention import PackedAttention
from .model import PackedModel, SequentialHosted
from .probes import WatchingLinears

_FIRST, _LAST = 16, 256  # tokens from which on lengths are tried
_MARGIN = 1.25  # for what is there for a moment only
_PACKED_SPAN = 256  # keys; longer sequences compute their scores again for backward


@dataclass(frozen=True, slots=True)
class ActivationCost:
    """Bytes of one sequence of n tokens: linear * n + square * n * n."""

    linear: float
    square: float

    def per_token(self, num_tokens: int) -> int:
        """Bytes a token of a sequence of so many."""
        return max(1, int(self.linear + self.square * num_tokens) + 1)

    def max_tokens(self, num_bytes: int) -> int:
        """Tokens of the longest sequence that fits."""
        if self.square <= 0:
            return int(num_bytes / max(self.linear, 1))
        root = sqrt(self.linear**2 + 4 * self.square * num_bytes)
        return int((root - self.linear) / (2 * self.square))


def packed_bytes_per_token(cost: ActivationCost) -> int:
    """Bound of a token's share in packed batches of any lengths."""
    return cost.per_token(_PACKED_SPAN)


def measure_activations(model: PackedModel | SequentialHosted) -> ActivationCost:
    """Count the bytes that forward passes of three lengths keep for backward.

    A recurrence computed in chunks pads its sequence; such lengths say nothing of longer ones, so
    the first is one at which twice the tokens take clearly more. A parabola goes through three.
    """
    step = _FIRST
    sizes = [_kept_bytes(model, step), _kept_bytes(model, 2 * step)]
    while step < _LAST and sizes[1] < 1.5 * sizes[0]:
        step *= 2
        sizes = [sizes[1], _kept_bytes(model, 2 * step)]
    sizes.append(_kept_bytes(model, 3 * step))
    square = max(0.0, (sizes[2] - 2 * sizes[1] + sizes[0]) / (2 * step * step))
    linear = max(0.0, sizes[2] / (3 * step) - square * 3 * step)
    return ActivationCost(linear * _MARGIN, square * _MARGIN)


def _kept_bytes(model: PackedModel | SequentialHosted, num_tokens: int) -> int:
    """Bytes of distinct memory saved for backward, weights left out."""
    held = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no memory is given out twice

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    tokens_T = torch.full((num_tokens,), 3, device=model.device) % model.config.vocab_size
    positions_T = torch.arange(num_tokens, device=model.device)
    attention = PackedAttention([0, num_tokens], model.device)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model.forward(tokens_T, positions_T, attention, WatchingLinears())
    return sum(kept.values())
