"""Attention over the paged cache on a GPU; imported only where Triton computes.

T rows of a step, H query heads, G key and value heads, K head width.
"""

import numpy as np
from torch import Tensor

from ...kernels.gpu.device_ints import DeviceInts
from ...kernels.gpu.paged import PagedTables, attend_pages, build_paged, store_pages
from ..model.attention_form import AttentionForm
from .kv_cache import KVCache, PagedAttention


class TritonPagedAttentions:
    """Makes the attention of one step after the other, in memory that it keeps.

    Args:
        is_deterministic: a row's bits are those that training gives it.
    """

    def __init__(self, cache: KVCache, *, is_deterministic: bool) -> None:
        self.cache = cache
        self.is_deterministic = is_deterministic
        self._memories: dict[int, DeviceInts] = {}

    def __call__(
        self, tables: np.ndarray, cached: np.ndarray, fresh: np.ndarray, padding: int = 0
    ) -> "TritonPagedAttention":
        """See `PagedAttention`. Those made before are not to be used any more."""
        return TritonPagedAttention(self, tables, cached, fresh, padding)

    def memory(self, num_heads: int) -> DeviceInts:
        """Where the tables of layers with so many heads lie."""
        if num_heads not in self._memories:
            self._memories[num_heads] = DeviceInts(self.cache.storage.device)
        return self._memories[num_heads]


class TritonPagedAttention:
    """Attention of one step; `PagedAttention` says what it gives.

    Forms with a window, a softcap or sinks are computed by `PagedAttention`.
    """

    def __init__(
        self,
        owner: TritonPagedAttentions,
        tables: np.ndarray,
        cached: np.ndarray,
        fresh: np.ndarray,
        padding: int,
    ) -> None:
        self._owner = owner
        self._step = tables, cached, fresh
        self._padding = padding
        self._longest = int((cached + fresh).max(initial=0))
        self._tables: dict[int, PagedTables] = {}  # by number of heads; most models have one
        self._formed: PagedAttention | None = None

    def attend(
        self,
        layer: int,
        q_THK: Tensor,
        k_TGK: Tensor,
        v_TGK: Tensor,
        form: AttentionForm | None = None,
    ) -> Tensor:
        """Store the new keys and values, then return what `Attention.attend` says, [T, H, K]."""
        cache = self._owner.cache
        if form is not None and not form.is_plain(self._longest):
            if self._formed is None:
                self._formed = PagedAttention(cache, *self._step, self._padding)
            return self._formed.attend(layer, q_THK, k_TGK, v_TGK, form)
        tables = self._tables_for(q_THK.shape[1])
        storage = cache.storage[layer]
        store_pages(k_TGK, v_TGK, storage, tables)
        scale = q_THK.shape[2] ** -0.5 if form is None else form.scale
        return attend_pages(q_THK, storage, tables, scale)

    def _tables_for(self, num_heads: int) -> PagedTables:
        if num_heads not in self._tables:
            storage = self._owner.cache.storage
            self._tables[num_heads] = build_paged(
                *self._step,
                page_size=storage.shape[4],
                num_heads=num_heads,
                num_kv_heads=storage.shape[3],
                head_dim=storage.shape[5],
                dtype=storage.dtype,
                is_deterministic=self._owner.is_deterministic,
                memory=self._owner.memory(num_heads),
            )
        return self._tables[num_heads]
