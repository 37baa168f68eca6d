"""Attention over pages: any mixture of prefill and decode, its bits, and NaN in unused memory."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from attention_helpers import (
    attend_each,
    attend_packed,
    plain_attention,
    random_rows,
    splits_of,
)
from kernel_errors import check_errors
from torch import Tensor

from weft.kernels.gpu import paged
from weft.kernels.gpu.attention import forward_variant, merge_variant
from weft.kernels.gpu.device_ints import DeviceInts
from weft.kernels.gpu.paged import attend_pages, build_paged, store_pages, store_variant
from weft.kernels.gpu.shapes import PUBLISHED
from weft.kernels.reference import causal_attention

SIZE, NUM_PAGES, SCALE = 16, 64, 0.3
TYPES = [torch.float32, torch.bfloat16]

pytestmark = pytest.mark.usefixtures("fresh_memory_is_nan")


@dataclass
class Cache:
    """One layer's pages, NaN wherever nothing was stored, and sequences over scattered pages."""

    storage: Tensor
    pages: list[np.ndarray]

    @classmethod
    def of(cls, lengths: list[int], rows: list[Tensor], device: torch.device) -> "Cache":
        shape = (2, NUM_PAGES, rows[1].shape[1], SIZE, rows[1].shape[2])
        storage = torch.full(shape, float("nan"), dtype=rows[1].dtype, device=device)
        order = iter(np.random.default_rng(0).permutation(NUM_PAGES).tolist())
        pages = [np.array([next(order) for _ in range(0, n, SIZE)], int) for n in lengths]
        return cls(storage, pages)

    def attend(
        self,
        sequences: list[list[Tensor]],
        pieces: list[tuple[int, int, int]],
        *,
        is_deterministic: bool = False,
        padding: int = 0,
    ) -> Tensor:
        """Store and compute tokens first .. last - 1 of some sequences in one step."""
        tables = np.full((len(pieces), max(map(len, self.pages), default=0)), 10**8)
        for row, (sequence, _, _) in enumerate(pieces):
            tables[row, : len(self.pages[sequence])] = self.pages[sequence]
        rows = [
            torch.cat(
                [sequences[i][which][first:last] for i, first, last in pieces]
                + [sequences[0][which].new_full((padding, *sequences[0][which].shape[1:]), 0.5)]
            )
            for which in range(3)
        ]
        device = self.storage.device
        q, k, v = (x.to(device) for x in rows)
        step = build_paged(
            tables,
            np.array([first for _, first, _ in pieces]),
            np.array([last - first for _, first, last in pieces]),
            page_size=SIZE,
            num_heads=q.shape[1],
            num_kv_heads=k.shape[1],
            head_dim=q.shape[2],
            dtype=q.dtype,
            is_deterministic=is_deterministic,
            memory=DeviceInts(device),
        )
        store_pages(k, v, self.storage, step)
        return attend_pages(q, self.storage, step, SCALE)


def split(lengths: list[int], rows: list[Tensor]) -> list[list[Tensor]]:
    """q, k, v of each sequence."""
    parts = [torch.split(x, lengths) for x in rows[:3]]
    return [[part[i] for part in parts] for i in range(len(lengths))]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("heads", [(2, 1, 64), (7, 1, 20), (2, 2, 96), (4, 1, 256)])
def test_any_mixture_of_phases_equals_the_oracle(
    heads: tuple[int, int, int], dtype: torch.dtype, device: torch.device
) -> None:
    lengths = [20, 1, 71, 18]
    rows = random_rows(sum(lengths), *heads, dtype)
    sequences, cache = split(lengths, rows), Cache.of(lengths, rows, device)
    with splits_of(64):
        cache.attend(sequences, [(0, 0, 19), (2, 0, 54), (3, 0, 3)])
        found = cache.attend(
            sequences, [(2, 54, 71), (0, 19, 20), (1, 0, 1), (3, 3, 18)], padding=2
        )

    exact = attend_each(lengths, [x.double() for x in rows], SCALE, causal_attention)[0]
    plain = attend_each(lengths, rows, SCALE, plain_attention)[0]
    order = np.r_[75:92, 19, 20, 95:110]
    assert not found[len(order) :].any()
    check_errors([found[: len(order)]], [plain[order]], [exact[order]])


@pytest.mark.parametrize("dtype", TYPES)
def test_training_prefill_in_pieces_and_decode_have_the_same_bits(
    dtype: torch.dtype, device: torch.device
) -> None:
    length, rows = 100, random_rows(100, 2, 1, 16, dtype)
    cache = Cache.of([length], rows, device)
    with splits_of(64):
        training = attend_packed([length], [x.to(device) for x in rows], SCALE)[0]
        whole = cache.attend([rows], [(0, 0, length)], is_deterministic=True)
        cache.storage.fill_(float("nan"))
        cuts = [0, 66, 99, 100]
        pieces = [
            cache.attend([rows], [(0, first, last)], is_deterministic=True)
            for first, last in pairwise(cuts)
        ]
    assert torch.equal(whole, training)
    assert torch.equal(torch.cat(pieces), training)


@pytest.mark.parametrize("is_deterministic", [False, True])
def test_neighbours_and_their_nan_change_no_bit(
    is_deterministic: bool, device: torch.device
) -> None:
    lengths, rows = [18, 70, 5], random_rows(93, 2, 1, 16, torch.bfloat16)
    sequences = split(lengths, rows)
    for x in (*sequences[0], *sequences[2]):
        x.fill_(float("nan"))
    pieces = [[(1, 0, 69)], [(1, 69, 70)]]
    cache, crowd = Cache.of(lengths, rows, device), Cache.of(lengths, rows, device)
    with splits_of(64):
        for (own,) in pieces:
            alone = cache.attend(sequences, [own], is_deterministic=is_deterministic)
            together = crowd.attend(
                sequences, [(0, 0, 18), own, (2, 0, 5)], is_deterministic=is_deterministic
            )
            first = 18
            assert alone.isfinite().all()
            assert torch.equal(together[first : first + len(alone)], alone)
            assert together[:first].isnan().all()


def test_deterministic_mode_decodes_in_the_tiles_of_prefill(device: torch.device) -> None:
    step = np.array([[0], [1]]), np.array([5, 0]), np.array([1, 12])
    for is_deterministic, num_decoded in ((True, 0), (False, 1)):
        tables = build_paged(
            *step,
            page_size=SIZE,
            num_heads=4,
            num_kv_heads=2,
            head_dim=16,
            dtype=torch.bfloat16,
            is_deterministic=is_deterministic,
            memory=DeviceInts(device),
        )
        assert (len(tables.whole.items), len(tables.decode.items)) == (2 - num_decoded, num_decoded)


def test_only_the_slots_of_new_rows_are_written(device: torch.device) -> None:
    rows = random_rows(20, 2, 2, 16, torch.bfloat16)
    cache = Cache.of([20], rows, device)
    cache.attend([rows], [(0, 0, 17)], padding=3)
    is_written = cache.storage.isfinite().all(-1).all(2)  # [2, pages, slots]
    places = is_written[0].nonzero().tolist()
    first, second = cache.pages[0].tolist()
    assert sorted(places) == sorted([[first, i] for i in range(SIZE)] + [[second, 0]])
    assert torch.equal(is_written[0], is_written[1])
    assert torch.equal(cache.storage[0, second, :, 0].cpu(), rows[1][16])
    assert torch.equal(cache.storage[1, second, :, 0].cpu(), rows[2][16])


def test_every_published_model_finds_its_variants() -> None:
    for shape in PUBLISHED:
        listed = {variant.name for variant in paged.all_variants(shape)}
        for dtype in TYPES:
            for is_decode in (False, True):
                sizes = {"page_size": SIZE, "for_decode": is_decode}
                assert forward_variant(shape.head_dim, dtype, **sizes).name in listed
            assert merge_variant(shape.head_dim, dtype, for_decode=True).name in listed
            assert store_variant(shape.head_dim, dtype, SIZE).name in listed
