"""Chooses the attention over the paged cache that a model's device computes by."""

from collections.abc import Callable
from functools import partial

from ..model.attention import Attention
from ..model.base import BaseModel
from .kv_cache import KVCache, PagedAttention


def paged_attentions(
    model: BaseModel, cache: KVCache, *, is_deterministic: bool
) -> Callable[..., Attention]:
    """What makes the attention of a step from `tables`, `cached`, `fresh` and `padding`.

    See `PagedAttention`. The attention of one step is not to be used after that of the next was
    made.
    """
    if not model.uses_triton:
        return partial(PagedAttention, cache, is_deterministic=is_deterministic)
    from .gpu_paged import TritonPagedAttentions

    return TritonPagedAttentions(cache, is_deterministic=is_deterministic)
