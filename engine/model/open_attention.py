"""Chooses the attention over packed sequences that a model's device computes by."""

from collections.abc import Callable

import numpy.typing as npt

from .attention import Attention, PackedAttention
from .base import BaseModel


def packed_attentions(
    model: BaseModel, *, is_deterministic: bool
) -> Callable[[npt.ArrayLike], Attention]:
    """What makes the attention of a batch from its `cu_seqlens`; see `PackedAttention`.

    The attention of one batch is not to be used after that of the next was made.
    """
    if not model.uses_triton:
        return lambda bounds: PackedAttention(
            bounds, model.device, is_deterministic=is_deterministic
        )
    from .gpu_attention import TritonAttentions

    return TritonAttentions(model.device, is_deterministic=is_deterministic)
