"""Attention over packed sequences, handed to the decoder from outside.

T tokens, H query heads, G key and value heads, K head width, N sequences.
"""

from typing import Protocol

from torch import Tensor


class Attention(Protocol):
    """Which tokens see which keys; the same for training, prefill and decode."""

    def attend(self, layer: int, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor) -> Tensor:
        """Return softmax(scale q k^T) v, [T, H, K], for the new tokens of this forward pass.

        Keys already carry their positions; scale is K ** -0.5; query head h reads key head
        h // (H // G).
        """
