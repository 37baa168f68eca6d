"""Paged attention against plain attention, whatever the mixture of prefill and decode."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from sampling_helpers import Facts
from thread_counts import threads
from torch import Tensor
from torch.overrides import TorchFunctionMode

from weft.engine.model.config import ModelConfig
from weft.engine.sampling.kv_cache import KVCache, PagedAttention, length_class, page_bytes
from weft.engine.sampling.pages import Copy

H, G, K, SIZE = 4, 2, 8, 4
CONFIG = ModelConfig.from_fields(
    {
        "model_type": "qwen3",
        "vocab_size": 64,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": H,
        "num_key_value_heads": G,
        "head_dim": K,
        "intermediate_size": 32,
        "max_position_embeddings": 64,
    }
)


@dataclass
class Sequence:
    """Queries, keys and values of a whole sequence and the pages it lies in."""

    q_THK: Tensor
    k_TGK: Tensor
    v_TGK: Tensor
    pages: list[int]

    @classmethod
    def random(cls, length: int, pages: list[int], seed: int) -> "Sequence":
        random = torch.Generator().manual_seed(seed)
        q, k, v = (torch.randn(length, heads, K, generator=random) for heads in (H, G, G))
        return cls(q, k, v, pages)

    def expected(self) -> Tensor:
        """Attention over the whole sequence, in float64."""
        q, k, v = (x.double().transpose(0, 1) for x in (self.q_THK, self.k_TGK, self.v_TGK))
        k, v = k.repeat_interleave(H // G, 0), v.repeat_interleave(H // G, 0)
        scores = (q @ k.transpose(1, 2)) * K**-0.5
        hidden = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
        out: Tensor = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v
        return out.transpose(0, 1)


def make_cache(num_pages: int = 64) -> KVCache:
    cache = KVCache(CONFIG, num_pages, SIZE)
    cache.storage.fill_(torch.nan)
    return cache


def attend(
    cache: KVCache, pieces: list[tuple[Sequence, int, int]], padding: int = 0, layer: int = 1
) -> list[Tensor]:
    """Compute tokens first..last - 1 of each sequence in one step."""
    width = max(len(sequence.pages) for sequence, _, _ in pieces)
    tables = np.full((len(pieces), width), 10**9)
    for row, (sequence, _, _) in enumerate(pieces):
        tables[row, : len(sequence.pages)] = sequence.pages
    first = np.array([first for _, first, _ in pieces])
    fresh = np.array([last - first for _, first, last in pieces])
    attention = PagedAttention(cache, tables, first, fresh, padding)
    q, k, v = (
        torch.cat(
            [getattr(sequence, name)[first:last] for sequence, first, last in pieces]
            + [torch.zeros(padding, heads, K)]
        )
        for name, heads in (("q_THK", H), ("k_TGK", G), ("v_TGK", G))
    )
    out_THK = attention.attend(layer, q, k, v)
    assert not out_THK[int(fresh.sum()) :].any()
    return list(torch.split(out_THK[: int(fresh.sum())], fresh.tolist()))


def paged(lengths: list[int], cache: KVCache) -> list[Sequence]:
    """Sequences over scattered cleared pages."""
    order = np.random.default_rng(0).permutation(cache.num_pages).tolist()
    sequences = []
    for seed, length in enumerate(lengths):
        pages = [order.pop() for _ in range(-(-length // SIZE))]
        cache.clear(pages)
        sequences.append(Sequence.random(length, pages, seed))
    return sequences


def test_classes_waste_at_most_a_quarter_of_long_sequences() -> None:
    classes = sorted({length_class(count) for count in range(1, 65)})
    assert classes == [1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64]
    assert all(count <= length_class(count) <= 1.25 * count for count in range(8, 500))


def test_page_bytes_count_all_layers() -> None:
    assert page_bytes(CONFIG, SIZE, torch.bfloat16) == 2 * 2 * G * SIZE * K * 2


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([(0, 0, 7)], id="prefill"),
        pytest.param([(0, 0, 8), (1, 0, 1), (2, 0, 30)], id="ragged prefill"),
        pytest.param([(0, 6, 7), (1, 0, 1), (2, 29, 30)], id="decode"),
        pytest.param([(2, 0, 30), (0, 6, 7), (1, 0, 1), (3, 5, 14)], id="all at once"),
        pytest.param([(2, 4, 30), (3, 13, 14), (0, 1, 8)], id="prefill of a later piece"),
    ],
)
def test_any_mixture_equals_plain_attention(pieces: list[tuple[int, int, int]]) -> None:
    cache = make_cache()
    sequences = paged([8, 1, 30, 14], cache)
    for index, first, _ in pieces:
        if first:
            attend(cache, [(sequences[index], 0, first)])
    work = [(sequences[index], first, last) for index, first, last in pieces]
    for (sequence, first, last), out in zip(work, attend(cache, work, padding=3), strict=True):
        torch.testing.assert_close(
            out.double(), sequence.expected()[first:last], atol=1e-6, rtol=1e-5
        )


def test_a_sequence_token_by_token_equals_the_whole() -> None:
    cache = make_cache()
    (sequence,) = paged([13], cache)
    rows = [attend(cache, [(sequence, token, token + 1)])[0] for token in range(13)]
    torch.testing.assert_close(torch.cat(rows).double(), sequence.expected(), atol=1e-6, rtol=1e-5)


def test_the_bits_of_a_sequence_do_not_depend_on_its_neighbours() -> None:
    lengths = [9, 11, 30, 10, 1, 12, 9]
    cache, other = make_cache(), make_cache()
    sequences = paged(lengths, cache)
    paged(lengths, other)
    together = attend(cache, [(sequence, 0, len(sequence.q_THK)) for sequence in sequences])
    for sequence, out in zip(sequences, together, strict=True):
        (alone,) = attend(other, [(sequence, 0, len(sequence.q_THK))])
        assert torch.equal(out, alone)
    together = attend(
        cache, [(sequence, len(sequence.q_THK) - 1, len(sequence.q_THK)) for sequence in sequences]
    )
    for sequence, out in zip(sequences, together, strict=True):
        (alone,) = attend(other, [(sequence, len(sequence.q_THK) - 1, len(sequence.q_THK))])
        assert torch.equal(out, alone)


@pytest.mark.parametrize("num_threads", [1, 2, 3, 8])
@pytest.mark.parametrize("fresh", [1, 9])
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(1, 1), (4, 4), (6, 2), (7, 1)])
def test_in_deterministic_mode_no_bit_depends_on_how_many_sequences_there_are(
    num_heads: int, num_kv_heads: int, fresh: int, num_threads: int
) -> None:
    cache = KVCache(Facts(num_kv_heads=num_kv_heads, head_dim=20), 70, SIZE)
    random = torch.Generator().manual_seed(0)
    cache.storage.normal_(generator=random)
    tables = np.arange(70).reshape(7, 10)
    q, k, v = (
        torch.randn(7, fresh, heads, 20, generator=random)
        for heads in (num_heads, num_kv_heads, num_kv_heads)
    )

    def attend_some(first: int, last: int) -> Tensor:
        some = slice(first, last)
        counts = np.full(last - first, 30), np.full(last - first, fresh)
        attention = PagedAttention(cache, tables[some], *counts, is_deterministic=True)
        rows = [x[some].flatten(0, 1) for x in (q, k, v)]
        return attention.attend(1, rows[0], rows[1], rows[2])

    with threads(num_threads):
        alone = torch.cat([attend_some(place, place + 1) for place in range(7)])
        for first, last in [(0, 2), (1, 4), (0, 7)]:
            expected = alone[first * fresh : last * fresh]
            assert torch.equal(attend_some(first, last), expected)


def test_nan_of_a_neighbour_stays_with_it() -> None:
    cache = make_cache()
    good, bad, tail = paged([10, 9, 3], cache)
    for tensor in (bad.q_THK, bad.k_TGK, bad.v_TGK):
        tensor.fill_(torch.nan)
    outs = attend(cache, [(good, 0, 9), (bad, 0, 8), (tail, 0, 2)])
    assert outs[0].isfinite().all()
    assert outs[1].isnan().all()
    outs = attend(cache, [(good, 9, 10), (bad, 8, 9), (tail, 2, 3)])
    assert outs[0].isfinite().all()
    assert outs[2].isfinite().all()


def test_a_page_with_a_former_owners_nan_is_clean_after_clear() -> None:
    cache = make_cache()
    (bad,) = paged([8], cache)
    bad.v_TGK.fill_(torch.nan)
    attend(cache, [(bad, 0, 8)])
    cache.clear(bad.pages)
    fresh = Sequence.random(5, bad.pages, 1)
    assert attend(cache, [(fresh, 0, 5)])[0].isfinite().all()


def test_a_copied_page_continues_on_its_own() -> None:
    cache = make_cache()
    (prompt,) = paged([7], cache)
    free = next(page for page in range(64) if page not in prompt.pages)
    attend(cache, [(prompt, 0, 6)])
    cache.copy([Copy(prompt.pages[1], free)])
    longer = Sequence(prompt.q_THK, prompt.k_TGK, prompt.v_TGK, [prompt.pages[0], free])
    (out,) = attend(cache, [(longer, 6, 7)])
    torch.testing.assert_close(out.double(), longer.expected()[6:], atol=1e-6, rtol=1e-5)
    assert not cache.storage[1, :, prompt.pages[1], :, 2].any()


def test_long_buckets_are_gathered_in_pieces() -> None:
    lengths = [29, 30, 31, 32, 30]
    whole, pieces = make_cache(), make_cache()
    pieces.gather_bytes = 2 * 8 * 2 * G * SIZE * K * 4
    sequences = paged(lengths, whole)
    paged(lengths, pieces)
    work = [(sequence, 0, len(sequence.q_THK)) for sequence in sequences]
    for left, right in zip(attend(whole, work), attend(pieces, work), strict=True):
        assert torch.equal(left, right)


class Counting(TorchFunctionMode):
    """Counts calls of torch functions."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_the_number_of_operations_does_not_grow_with_the_sequences() -> None:
    counts = []
    for copies in (1, 10):
        cache = make_cache()
        sequences = paged([9, 10] * copies, cache)
        q, k, v = (torch.randn(2 * copies, heads, K) for heads in (H, G, G))
        tables = np.array([sequence.pages for sequence in sequences])
        cached = np.array([len(sequence.q_THK) - 1 for sequence in sequences])
        attention = PagedAttention(cache, tables, cached, np.ones_like(cached))
        with Counting() as counting:
            attention.attend(0, q, k, v)
        counts.append(counting.count)
    assert counts[0] == counts[1]
