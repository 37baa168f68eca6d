"""What the decoder computes beside its linears and attention, and the PyTorch form of it.

T tokens, D width, H query heads, G key heads, K head width, F feed-forward width.
"""

from typing import Protocol

from torch import Tensor

from . import layers
from .rope import rotate


class Pieces(Protocol):
    """The pieces between linears and attention; differentiable in activations, never in weights.

    Every row is computed from that row alone.
    """

    def add_rms_norm(
        self, x_TD: Tensor, delta_TD: Tensor | None, weight_D: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Return x + delta, rounded to the dtype of x, and `layers.rms_norm` of that.

        Without a delta the sum is x, and all bits, also of gradients, are those that x as a sum
        has. Both results are to be used instead of x.
        """

    def rotated(
        self,
        q_THK: Tensor,
        k_TGK: Tensor,
        q_norm_K: Tensor | None,
        k_norm_K: Tensor | None,
        eps: float,
        angles: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Return queries and keys, each head normed where there are weights for it, then rotated.

        Args:
            q_THK: may be a view of columns of something wider, like `k_TGK`.
            q_norm_K: None together with `k_norm_K`.
            angles: cosines and sines as `Rope.at` returns them.
        """

    def swiglu(self, gate_TF: Tensor, up_TF: Tensor) -> Tensor:
        """Return silu(gate) * up; the arguments may be views of columns of something wider."""


class TorchPieces:
    """The functions of `layers` and `rope`.

    Args:
        is_deterministic: see `layers.swiglu`.
    """

    def __init__(self, is_deterministic: bool = False) -> None:
        self._is_deterministic = is_deterministic

    def add_rms_norm(
        self, x_TD: Tensor, delta_TD: Tensor | None, weight_D: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        sum_TD = x_TD if delta_TD is None else x_TD + delta_TD
        return sum_TD, layers.rms_norm(sum_TD, weight_D, eps)

    def rotated(
        self,
        q_THK: Tensor,
        k_TGK: Tensor,
        q_norm_K: Tensor | None,
        k_norm_K: Tensor | None,
        eps: float,
        angles: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        if q_norm_K is not None and k_norm_K is not None:
            q_THK = layers.rms_norm(q_THK, q_norm_K, eps)
            k_TGK = layers.rms_norm(k_TGK, k_norm_K, eps)
        return rotate(q_THK, *angles), rotate(k_TGK, *angles)

    def swiglu(self, gate_TF: Tensor, up_TF: Tensor) -> Tensor:
        return layers.swiglu(gate_TF, up_TF, self._is_deterministic)
