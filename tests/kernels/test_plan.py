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


def test_segments_of_one_adapter_share_its_entry() -> None:
    plan = build_plan([1] * 5, [4] * 5, [3] * 5, adapters=[9, 9, 9, 9, 9])
    assert [stack.segments for stack in plan.stacks] == [(0,)]
    (block,) = plan.blocks
    assert (block.first, block.last, block.repeats, block.num_entries) == (0, 1, 5, 5)
    assert block.start == 0


def test_adapters_of_a_few_segments_stand_together_in_a_few_blocks() -> None:
    adapters = [7, 5, 5, 6, 7, 5, 5, 5, 5]
    plan = build_plan([1] * 9, [4] * 9, [3] * 9, adapters=adapters)
    assert [stack.segments for stack in plan.stacks] == [(1, 0, 3)]
    assert [(b.first, b.last, b.repeats) for b in plan.blocks] == [(0, 1, 6), (1, 3, 1), (1, 2, 1)]
    assert plan.blocks[1].rows.tolist() == [0, 3]
    assert plan.blocks[2].start == 4


def test_segments_that_share_entries_are_packed_block_by_block() -> None:
    adapters, lengths = [7, 5, 5, 6, 7, 5, 0, 5, 9], [1, 1, 1, 1, 1, 1, 1, 1, 20]
    ranks = [0 if adapter == 0 else 4 for adapter in adapters]
    order = packing_order(ranks, [3] * 9, lengths, adapters)
    assert order.tolist() == [1, 2, 5, 7, 0, 3, 4, 8, 6]
    packed = [np.asarray(each)[order] for each in (lengths, ranks, adapters)]
    plan = build_plan(packed[0], packed[1], [3] * 9, adapters=packed[2].tolist())
    assert all(block.start >= 0 for block in plan.blocks)


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


@pytest.mark.parametrize("seed", range(20))
def test_blocks_of_shared_entries_read_the_adapters_of_their_rows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    num = int(rng.integers(1, 60))
    adapters = rng.choice(12, num) if seed % 2 else rng.integers(0, 3, num) ** 3
    ranks, targets = (1 + adapters * 7 % 20) % 17, 1 + adapters % 3
    counts = rng.choice([0, 1, 1, 1, 5, 17], num)
    plan = build_plan(
        counts, ranks, targets, adapters=adapters.tolist(), is_deterministic=bool(seed % 3)
    )
    owners = np.repeat(adapters, counts)
    rows: list[int] = []
    for block in plan.blocks:
        size = block.num_entries * block.length
        places = block.rows if block.start < 0 else block.start + np.arange(size)
        entries = [*range(block.first, block.last)] * block.repeats
        assert len(entries) == block.num_entries
        for entry, own in zip(entries, places.reshape(-1, block.length), strict=True):
            adapter = adapters[plan.stacks[block.stack].segments[entry]]
            assert (owners[own[own >= 0]] == adapter).all()
            rows.extend(own[own >= 0].tolist())
    assert sorted(rows) == np.flatnonzero(np.repeat(ranks > 0, counts)).tolist()


@pytest.mark.parametrize("seed", range(10))
def test_shared_entries_of_one_class_make_few_blocks(seed: int) -> None:
    rng = np.random.default_rng(seed)
    adapters = np.sort(rng.zipf(1.5, 200) % 50)
    plan = build_plan([1] * 200, [4] * 200, [1] * 200, adapters=adapters.tolist())
    assert len(plan.blocks) <= 2 * 200**0.5
    assert len(plan.blocks) <= len(set(adapters.tolist()))


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
