"""Attention of packed sequences: values, every gradient, bits, and lone NaN."""

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

from weft.kernels.gpu import attention, attention_gradient
from weft.kernels.gpu.shapes import PUBLISHED
from weft.kernels.gpu.variants import UnknownVariant, Variant
from weft.kernels.reference import causal_attention

TYPES = [torch.float32, torch.bfloat16]
CASES = [
    pytest.param([5, 0, 70, 1], (2, 1, 64), id="ragged, 2 heads a key head"),
    pytest.param([33, 0], (3, 3, 96), id="one head a key head, empty last"),
    pytest.param([1, 1, 9, 1], (8, 1, 128), id="one token, 8 heads a key head"),
    pytest.param([17], (4, 1, 256), id="wide heads"),
    pytest.param([0, 19, 40], (7, 1, 20), id="odd width, 7 heads a key head"),
]
PADDING = 3

pytestmark = pytest.mark.usefixtures("fresh_memory_is_nan")


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("lengths", "heads"), CASES)
def test_output_and_gradients_equal_the_oracle(
    lengths: list[int], heads: tuple[int, int, int], dtype: torch.dtype, device: torch.device
) -> None:
    rows = random_rows(sum(lengths) + PADDING, *heads, dtype)
    scale = 0.3

    found = attend_packed(lengths, [x.to(device) for x in rows], scale)

    exact = attend_each(lengths, [x.double() for x in rows], scale, causal_attention)
    check_errors(found, attend_each(lengths, rows, scale, plain_attention), exact)
    assert all((x[sum(lengths) :] == 0).all() for x in found)


@pytest.mark.parametrize("dtype", TYPES)
def test_splits_are_added_up(dtype: torch.dtype, device: torch.device) -> None:
    lengths, rows = [100], random_rows(100, 2, 1, 32, dtype)
    with splits_of(64):
        found = attend_packed(lengths, [x.to(device) for x in rows], 0.2)
    exact = attend_each(lengths, [x.double() for x in rows], 0.2, causal_attention)
    check_errors(found, attend_each(lengths, rows, 0.2, plain_attention), exact)


# The interpreter takes a maximum of numbers that are all NaN for a mistake.
@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")
def test_a_sequence_has_the_same_bits_among_others_and_no_nan_of_theirs(
    device: torch.device,
) -> None:
    own = random_rows(70, 2, 1, 32, torch.bfloat16)
    with splits_of(64):
        alone = attend_packed([70], [x.to(device) for x in own], 0.2)
        for before, after in [([3], []), ([9, 0, 66], [1])]:
            lengths = [*before, 70, *after]
            rows = slice(sum(before), sum(before) + 70)
            crowd = [x.new_full((sum(lengths), *x.shape[1:]), float("nan")) for x in own]
            for x, mine in zip(crowd, own, strict=True):
                x[rows] = mine
            found = attend_packed(lengths, [x.to(device) for x in crowd], 0.2)
            assert all(torch.equal(x[rows], y) for x, y in zip(found, alone, strict=True))


def test_heads_of_tokens_further_apart_change_no_bit(device: torch.device) -> None:
    rows = [x.to(device) for x in random_rows(40, 2, 2, 16, torch.bfloat16)]
    wide = [torch.cat([x, torch.full_like(x, float("nan"))], 1) for x in rows]
    apart = [x[:, : own.shape[1]] for x, own in zip(wide, rows, strict=True)]
    assert not any(x.is_contiguous() for x in apart)
    for found, expected in zip(
        attend_packed([40], apart, 0.25), attend_packed([40], rows, 0.25), strict=True
    ):
        assert torch.equal(found, expected)


def test_large_scores_neither_overflow_nor_vanish(device: torch.device) -> None:
    rows = random_rows(20, 1, 1, 16, torch.float32)
    rows[0] *= 100
    found = attend_packed([20], [x.to(device) for x in rows], 1.0)
    exact = attend_each([20], [x.double() for x in rows], 1.0, causal_attention)
    # Scores of about 1000 have an error of 1e-4 each, which exp hands on to the weights.
    for x, y in zip(found, exact, strict=True):
        torch.testing.assert_close(x.cpu().double(), y, rtol=1e-2, atol=1e-2)


def test_groups_of_items_that_share_no_memory_give_the_same(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [x.to(device) for x in random_rows(100, 2, 1, 16, torch.bfloat16)]
    with splits_of(64):
        expected = attend_packed([100], rows, 0.25)
        monkeypatch.setattr(attention, "PARTIAL_BYTES", 4 * 18 * 300)
        found = attend_packed([100], rows, 0.25)
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


@pytest.mark.parametrize("head_dim", [0, 257])
def test_other_head_widths_are_refused_by_name(head_dim: int) -> None:
    with pytest.raises(UnknownVariant, match=f"heads of {head_dim}"):
        attention.forward_variant(head_dim, torch.bfloat16)


def test_other_types_are_refused_by_name() -> None:
    with pytest.raises(UnknownVariant, match="float16"):
        attention_gradient.dq_variant(64, torch.float16)


def test_every_published_model_finds_its_variants() -> None:
    for shape in PUBLISHED:
        listed = {*attention.all_variants(shape), *attention_gradient.all_variants(shape)}
        for dtype in TYPES:
            used: list[Variant] = [
                attention.forward_variant(shape.head_dim, dtype),
                attention.merge_variant(shape.head_dim, dtype),
                attention_gradient.dq_variant(shape.head_dim, dtype),
                attention_gradient.dkv_variant(shape.head_dim, dtype),
            ]
            assert listed.issuperset(used)
