"""Layouts of blocks and stacks."""

import numpy as np
import pytest

from weft.kernels.layout import Layout, padded
from weft.kernels.stack import StackLayout

# Two groups of family 1 (two sites, one site), one of family 2, one of family 4.
LAYOUT = Layout(
    shapes=((32, 48), (32, 16), (48, 32), (32, 80), (32, 100)),
    groups=((0, 1), (2,), (3,), (4,)),
    families=(1, 1, 2, 4),
)


def test_rows_are_whole_granules() -> None:
    assert LAYOUT.granule == 16
    assert LAYOUT.row_granules(4) == (2, 7)
    assert [padded(width) for width in (1, 16, 17, 4095, 4097)] == [16, 16, 32, 4096, 4224]


@pytest.mark.parametrize("targets", range(1, 8))
@pytest.mark.parametrize("rank", [1, 5, 8])
def test_sites_tile_a_block(rank: int, targets: int) -> None:
    ranges: list[int] = []
    for site, offsets in LAYOUT.site_offsets(rank, targets).items():
        for offset, row in zip(offsets, LAYOUT.row_granules(site), strict=True):
            ranges.extend(range(offset, offset + rank * row))
    assert sorted(ranges) == list(range(LAYOUT.block_size(rank, targets)))


def test_portions_lie_side_by_side() -> None:
    assert LAYOUT.portion_range(3, 7, 3) == (0, LAYOUT.block_size(3, 3))
    assert LAYOUT.portion_range(3, 7, 4) == (LAYOUT.block_size(3, 3), LAYOUT.block_size(3, 4))
    assert LAYOUT.portion_range(3, 4, 4) == (0, LAYOUT.block_size(3, 4))


def test_gather_and_scatter_are_inverse_and_padding_reads_granule_zero() -> None:
    stack = StackLayout(LAYOUT, bucket=8, targets=3)
    ranks, starts = (3, 8, 1), (10, 1000, 500)
    gathered = stack.gather_index(ranks, starts)
    own = [
        np.arange(start, start + stack.block_size(rank))
        for rank, start in zip(ranks, starts, strict=True)
    ]
    assert np.array_equal(gathered[stack.scatter_index(ranks)], np.concatenate(own))
    padding = np.delete(gathered, stack.scatter_index(ranks))
    assert not padding.any()
    assert len(gathered) == 3 * stack.size
