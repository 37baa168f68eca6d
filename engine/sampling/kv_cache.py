"""Keys and values of sampled sequences in pages, and attention over them.

T rows of a step, H query heads, G key and value heads, K head width, N sequences of a bucket,
Q query rows of the longest of its class, P pages of its class, S tokens of a page.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.attention_form import AttentionForm, attend_formed
from ..model.base import ModelFacts
from ..model.exact_attention import ROWS, attend_exactly
from .pages import Copy, pages_for

# Pages are gathered this many bytes at a time. On a CPU attention then reads them from its cache:
# 32 sequences of 576 tokens, 38 MB, take 4.0 ms so and 5.9 ms in one piece.
CPU_GATHER_BYTES = 8 << 20
DEVICE_GATHER_BYTES = 256 << 20


def page_bytes(config: ModelFacts, page_size: int, dtype: torch.dtype) -> int:
    """Return the bytes of one page over all layers."""
    values = config.num_layers * 2 * config.num_kv_heads * config.head_dim * page_size
    return values * dtype.itemsize


class KVCache:
    """Storage [layers, 2, pages + 1, G, S, K]; keys are [:, 0], values [:, 1].

    Heads lie outside the tokens of a page, so that a gather of pages gives every head's keys in one
    piece (CPU, 32 sequences of 576 tokens: gather and attention 1.3x faster than the other way
    round). The extra last page takes what rows without a sequence write.
    """

    def __init__(
        self,
        config: ModelFacts,
        num_pages: int,
        page_size: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        shape = (config.num_layers, 2, num_pages + 1, config.num_kv_heads)
        self.storage = torch.zeros(
            *shape, page_size, config.head_dim, dtype=dtype, device=torch.device(device)
        )
        on_cpu = self.storage.device.type == "cpu"
        self.gather_bytes = CPU_GATHER_BYTES if on_cpu else DEVICE_GATHER_BYTES
        self._workspace = self.storage.new_empty(0)

    def clear(self, pages: Sequence[int]) -> None:
        """Zero pages that get a new owner: what masks hide must be finite, and nobody else's."""
        if pages:
            self.storage.index_fill_(2, self._index(pages), 0.0)

    def copy(self, copies: Sequence[Copy]) -> None:
        """Carry out copies of whole pages over all layers."""
        for copy in copies:  # in place: a copy needs no memory
            self.storage[:, :, copy.target] = self.storage[:, :, copy.source]

    def workspace(self, rows: int, width: int) -> Tensor:
        """Return uninitialised [rows, width], valid until the next call."""
        if self._workspace.numel() < rows * width:
            self._workspace = self.storage.new_empty(rows * width)
        return self._workspace[: rows * width].view(rows, width)

    def _index(self, pages: Sequence[int]) -> Tensor:
        return torch.tensor(pages, dtype=torch.int64, device=self.storage.device)


def length_class(count: int) -> int:
    """Return the smallest of 1, 2, 3, 4, 6, 8, then in steps of a quarter, 10, 12, 14, 16, 20, ...
    that is not below `count`."""
    octave = 1 << max(count - 1, 1).bit_length() - 1
    step = max(1, octave // (4 if octave >= 8 else 2))
    return -(-count // step) * step


@dataclass(frozen=True, slots=True)
class _Bucket:
    """Sequences of one class of lengths, padded to that class and to nothing else."""

    num_sequences: int
    num_queries: int  # Q
    query_rows: Tensor  # [N * Q] rows of the step; the sequence's last row where it has fewer
    page_rows: Tensor  # [2 * N * G * P] rows of one layer's storage seen as [.., S * K]
    mask: Tensor | None  # [N, 1, Q, P * S] bool; None: causal from the first token on, or `later`
    later: Tensor | None  # [N, Q, P * S] bool, keys not seen; in deterministic mode only
    last: np.ndarray  # [N, Q] the last key each query sees
    kept: Tensor | None  # indices into query_rows that are results; None: all of them


class PagedAttention:
    """Attention of one step: every sequence's new rows see all its tokens up to themselves.

    Prefill, decode and anything between are the same: a sequence has `cached` tokens in its pages
    and gets `fresh` new ones. Sequences are padded to classes that depend on their own numbers
    alone, and read no page but their own, so neither the values nor the bits of one depend on the
    others. The number of operations grows with the classes and with the bytes read, not with the
    number of sequences.

    Args:
        cache: where `attend` writes the new keys and values, and reads all of them.
        tables: pages of each sequence in order, [N, any], entries beyond those in use ignored.
        cached: tokens of each sequence that are in its pages already, [N].
        fresh: new rows of each sequence, at least 1, [N]; the step's rows are the sequences' in
            this order.
        padding: rows after those, that belong to nobody; their result is zero.
        is_deterministic: on a CPU, the bits of a row must depend neither on other sequences nor on
            how its own came into the pages; those that `PackedAttention` gives it.
    """

    def __init__(
        self,
        cache: KVCache,
        tables: np.ndarray,
        cached: np.ndarray,
        fresh: np.ndarray,
        padding: int = 0,
        *,
        is_deterministic: bool = False,
    ) -> None:
        self._cache = cache
        self._is_exact = is_deterministic and cache.storage.device.type == "cpu"
        size, device = cache.page_size, cache.storage.device
        heads = cache.storage.shape[3]
        ends = np.cumsum(fresh)
        num_rows = int(ends[-1]) if len(ends) else 0
        owner = np.repeat(np.arange(len(fresh)), fresh)
        positions = np.arange(num_rows) - np.repeat(ends - fresh, fresh) + cached[owner]
        slots = np.full(num_rows + padding, cache.num_pages * heads * size, np.int64)
        slots[:num_rows] = tables[owner, positions // size] * heads * size + positions % size
        per_head = slots[:, None] + np.arange(heads) * size
        self._slots = torch.from_numpy(per_head.reshape(-1)).to(device)
        self._num_rows, self._padding = num_rows, padding
        self._buckets = self._cut(tables, cached, fresh, ends - fresh)
        self._last_CQ: dict[int, Tensor] = {}  # by place of a bucket, once a layer asks for it

    def attend(
        self,
        layer: int,
        q_THK: Tensor,
        k_TGK: Tensor,
        v_TGK: Tensor,
        form: AttentionForm | None = None,
    ) -> Tensor:
        """Store the new keys and values, then return what `Attention.attend` says, [T, H, K]."""
        storage = self._cache.storage[layer]
        K = storage.shape[-1]
        storage[0].view(-1, K).index_copy_(0, self._slots, k_TGK.reshape(-1, K))
        storage[1].view(-1, K).index_copy_(0, self._slots, v_TGK.reshape(-1, K))
        out_THK = torch.empty_like(q_THK, memory_format=torch.contiguous_format)
        out_THK[self._num_rows :] = 0.0
        for place, bucket in enumerate(self._buckets):
            self._attend_bucket(place, bucket, storage, q_THK, out_THK, form)
        return out_THK

    def _attend_bucket(
        self,
        place: int,
        bucket: _Bucket,
        storage: Tensor,
        q_THK: Tensor,
        out_THK: Tensor,
        form: AttentionForm | None,
    ) -> None:
        (H, K), (G, S) = q_THK.shape[1:], storage.shape[2:4]
        N, Q = bucket.num_sequences, bucket.num_queries
        pages = self._cache.workspace(len(bucket.page_rows), S * K)
        torch.index_select(storage.view(-1, S * K), 0, bucket.page_rows, out=pages)
        k_NGLK, v_NGLK = pages.view(2, N, G, -1, K)
        q_NQHK = q_THK.index_select(0, bucket.query_rows).view(N, Q, H, K)
        if form is None:
            out = _plain(q_NQHK, k_NGLK, v_NGLK, bucket)
        elif form.is_plain(k_NGLK.shape[2]):
            out = _plain(form.scaled(q_NQHK), k_NGLK, v_NGLK, bucket)
        else:
            if place not in self._last_CQ:
                last_CQ = torch.from_numpy(np.repeat(bucket.last, G, axis=0))
                self._last_CQ[place] = last_CQ.to(storage.device)
            out = _formed(q_NQHK, k_NGLK, v_NGLK, self._last_CQ[place], form)
        rows, out = bucket.query_rows, out.reshape(N * Q, H, K)
        if bucket.kept is not None:
            rows, out = rows.index_select(0, bucket.kept), out.index_select(0, bucket.kept)
        out_THK.index_copy_(0, rows, out)

    def _cut(
        self, tables: np.ndarray, cached: np.ndarray, fresh: np.ndarray, starts: np.ndarray
    ) -> list[_Bucket]:
        size = self._cache.page_size
        bytes_per_page = 2 * self._cache.storage[0, 0, 0].nbytes
        classes: dict[tuple[int, int, bool], list[int]] = {}
        lengths = zip(cached.tolist(), fresh.tolist(), strict=True)
        for sequence, (old, new) in enumerate(lengths):
            queries = 1 if new == 1 else length_class(pages_for(new, size)) * size
            pages = length_class(pages_for(old + new, size))
            if self._is_exact:  # whole sixteens of keys
                pages += -pages % (ROWS // math.gcd(ROWS, size))
            classes.setdefault((queries, pages, old == 0 and new > 1), []).append(sequence)
        buckets: list[_Bucket] = []
        for key, members in classes.items():
            count = max(1, self._cache.gather_bytes // (key[1] * bytes_per_page))
            for first in range(0, len(members), count):
                piece = np.array(members[first : first + count])
                buckets.append(self._bucket(key, piece, tables, cached, fresh, starts))
        return buckets

    def _bucket(
        self,
        key: tuple[int, int, bool],
        members: np.ndarray,
        tables: np.ndarray,
        cached: np.ndarray,
        fresh: np.ndarray,
        starts: np.ndarray,
    ) -> _Bucket:
        num_queries, num_pages, is_causal = key
        cache, device = self._cache, self._cache.storage.device
        size, heads = cache.page_size, cache.storage.shape[3]
        cached, fresh = cached[members], fresh[members]
        # A sequence that does not fill its class sees its own last page and last row repeated.
        last_page = (cached + fresh - 1) // size
        column = np.minimum(np.arange(num_pages), last_page[:, None])
        pages = tables[members[:, None], column] * heads
        rows = pages[:, None, :] + np.arange(heads)[:, None]
        values = rows + (cache.num_pages + 1) * heads
        query = np.arange(num_queries)
        query_rows = starts[members][:, None] + np.minimum(query, fresh[:, None] - 1)
        mask = later = None
        last = cached[:, None] + np.minimum(query, fresh[:, None] - 1)
        if self._is_exact:
            hidden = np.arange(num_pages * size) > last[:, :, None]
            later = torch.from_numpy(hidden).to(device)
        elif not is_causal:
            visible = np.arange(num_pages * size) <= last[:, :, None]
            mask = torch.from_numpy(visible[:, None]).to(device)
        is_result = query < fresh[:, None]
        kept = None if is_result.all() else torch.from_numpy(np.flatnonzero(is_result)).to(device)
        return _Bucket(
            len(members),
            num_queries,
            torch.from_numpy(query_rows.reshape(-1)).to(device),
            torch.from_numpy(np.concatenate([rows.reshape(-1), values.reshape(-1)])).to(device),
            mask,
            later,
            last,
            kept,
        )


def _plain(q_NQHK: Tensor, k_NGLK: Tensor, v_NGLK: Tensor, bucket: _Bucket) -> Tensor:
    """Plain causal attention of a bucket, [N, Q, H, K] or that much in another shape."""
    (N, Q, H, K), G = q_NQHK.shape, k_NGLK.shape[1]
    if bucket.later is not None:
        return attend_exactly(q_NQHK, k_NGLK, v_NGLK, bucket.last, bucket.later)
    if Q == 1:  # the heads that share keys are queries of one head: no key is repeated
        q_NGRK = q_NQHK.view(N, G, H // G, K)
        return F.scaled_dot_product_attention(q_NGRK, k_NGLK, v_NGLK, attn_mask=bucket.mask)
    out_NHQK = F.scaled_dot_product_attention(
        q_NQHK.transpose(1, 2),
        k_NGLK,
        v_NGLK,
        attn_mask=bucket.mask,
        is_causal=bucket.mask is None,
        enable_gqa=H != G,
    )
    return out_NHQK.transpose(1, 2)


def _formed(
    q_NQHK: Tensor, k_NGLK: Tensor, v_NGLK: Tensor, last_CQ: Tensor, form: AttentionForm
) -> Tensor:
    """Attention of a bucket in a form of its own, [N, Q, H, K]."""
    (N, Q, H, K), (G, L) = q_NQHK.shape, k_NGLK.shape[1:3]
    q_CMK = q_NQHK.view(N, Q, G, H // G, K).transpose(1, 2).reshape(N * G, Q * (H // G), K)
    k_CLK, v_CLK = k_NGLK.reshape(N * G, L, K), v_NGLK.reshape(N * G, L, K)
    out_CMK = attend_formed(q_CMK, k_CLK, v_CLK, last_CQ, form)
    return out_CMK.view(N, G, Q, H // G, K).transpose(1, 2).reshape(N, Q, H, K)
