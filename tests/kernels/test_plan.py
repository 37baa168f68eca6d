"""Cutting a batch into stacks and blocks."""

import numpy as np
import pytest

from weft.kernels.plan import build_plan, length_class, packing_order, rank_bucket


def test_packing_puts_units_of_one_block_together_and_base_rows_last() -> None:
    ranks = [0, 4, 64, 8, 64, 0, 5]
    lengths = [9, 64, 64, 16, 16, 3, 64]
    order = packing_order(ranks, [0, 3, 3, 3, 3, 0, 3], lengths)
    assert order.tolist() == [3, 1, 6, 4, 2, 5, 0]


def test_packing_ignores_the_unembedding() -> None:
    assert packing_order([8, 8, 8], [7, 1, 3], [16, 16, 16]).tolist() == [1, 0, 2]


def test_adjacent_units_of_equal_length_are_a_view() -> None:
    plan = build_plan([10, 10, 5], [4, 6, 0], [3, 3, 0])
    (block,) = plan.blocks
    assert (block.start, block.length, block.num_entries, len(block.rows)) == (0, 10, 2, 0)


def test_ragged_units_are_padded_to_their_class() -> None:
    plan = build_plan([3, 4, 2], [4, 4, 4], [3, 3, 3])
    assert [(b.first, b.last, b.length) for b in plan.blocks] == [(0, 1, 2), (1, 3, 4)]
    assert plan.blocks[0].start == 7
    assert plan.blocks[1].rows.tolist() == [0, 1, 2, -1, 3, 4, 5, 6]


def test_deterministic_plans_pad_whatever_the_neighbours() -> None:
    alone = build_plan([19], [4], [3], is_deterministic=True)
    among = build_plan([19, 30, 19], [4, 4, 4], [3, 3, 3], is_deterministic=True)
    assert alone.blocks[0].length == among.blocks[0].length == 32
    assert among.blocks[0].num_entries == 3


def test_targets_and_rank_buckets_have_stacks_of_their_own() -> None:
    plan = build_plan([8] * 4, [8, 9, 8, 1], [3, 3, 1, 3])
    assert [(s.bucket, s.targets, s.segments) for s in plan.stacks] == [
        (8, 1, (2,)),
        (8, 3, (0, 3)),
        (16, 3, (1,)),
    ]


def test_units_without_rows_adapter_or_target_are_absent() -> None:
    plan = build_plan([0, 7, 7], [4, 0, 4], [3, 3, 0])
    assert not plan.stacks
    assert not plan.blocks
    assert plan.num_rows == 14


@pytest.mark.parametrize("seed", range(20))
def test_blocks_cover_each_row_of_an_adapter_once(seed: int) -> None:
    rng = np.random.default_rng(seed)
    num = int(rng.integers(1, 30))
    counts = rng.choice([0, 1, 5, 16, 17, 64, 600], num)
    ranks = rng.choice([0, 1, 4, 7, 16, 64, 256], num)
    targets = rng.choice([0, 1, 2, 3], num)
    plan = build_plan(counts, ranks, targets, is_deterministic=bool(seed % 2))
    rows: list[int] = []
    for block in plan.blocks:
        place = block.num_entries * block.length
        own = range(block.start, block.start + place) if block.start >= 0 else block.rows
        rows.extend(row for row in own if row >= 0)
    has = np.repeat((ranks > 0) & (targets > 0), counts)
    assert sorted(rows) == np.flatnonzero(has).tolist()


def test_padding_stays_under_a_quarter() -> None:
    lengths = np.arange(16, 600)
    classes = length_class(lengths)
    assert (classes >= lengths).all()
    assert ((classes - lengths) / classes).max() < 0.5
    assert ((classes - lengths) / classes)[lengths >= 64].max() < 0.25
    assert len(set(classes[lengths < 512])) < 25


@pytest.mark.parametrize(("rank", "bucket"), [(1, 8), (8, 8), (9, 16), (64, 64), (129, 256)])
def test_rank_buckets(rank: int, bucket: int) -> None:
    assert rank_bucket(np.array([rank]))[0] == bucket


def test_deterministic_plans_have_whole_row_tiles() -> None:
    counts = [1, 3, 9, 17, 40, 513, 1000]
    plan = build_plan(counts, [4] * 7, [3] * 7, is_deterministic=True)
    lengths = sorted(block.length for block in plan.blocks for _ in range(block.num_entries))
    assert all(length % 16 == 0 for length in lengths)
    assert lengths == [16, 16, 16, 32, 48, 528, 1008]
