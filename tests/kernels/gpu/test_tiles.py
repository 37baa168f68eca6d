"""The segment plan of the Triton kernels: pure arithmetic, and its memory on the device."""

import numpy as np
import pytest
import torch

from weft.kernels.gpu.tiles import (
    BUCKETS,
    NOT_TARGETED,
    TileBuffers,
    TilePlan,
    build_tiles,
    site_table,
)
from weft.kernels.layout import Layout

LAYOUT = Layout(((32, 48), (32, 16), (48, 32), (32, 100)), ((0, 1), (2,), (3,)), (1, 1, 4))


def plan_of(counts: list[int], ranks: list[int], **options: object) -> TilePlan:
    made: dict[str, object] = {
        "num_rows": sum(counts),
        "starts": [100 * index for index in range(len(counts))],
        "masks": [1] * len(counts),
        "scales": [2.0] * len(counts),
        "tile_rows": 16,
    }
    return build_tiles(counts, ranks=ranks, **(made | options))  # type: ignore[arg-type]


def test_tiles_never_straddle_segments_and_come_by_bucket() -> None:
    plan = plan_of([20, 3, 40], [64, 0, 3], num_rows=70)
    assert plan.tiles[:, :3].tolist() == [
        [1, 20, 3],
        [3, 63, 7],  # rows beyond the segments
        [2, 23, 16],
        [2, 39, 16],
        [2, 55, 8],
        [0, 0, 16],
        [0, 16, 4],
    ]
    assert plan.header[:, :2].tolist() == [[0, 2], [2, 3], [5, 0], [5, 2], [7, 0], [7, 0]]
    assert plan.used_buckets == (16, 64)
    assert [plan.num_tiles(bucket) for bucket in BUCKETS] == [2, 3, 0, 2, 0, 0]


def test_segments_say_where_weights_rows_and_projections_lie() -> None:
    plan = plan_of([20, 0, 3, 40], [64, 8, 0, 3], masks=[5, 1, 0, 1])
    assert plan.segments[:, :6].tolist() == [
        [0, 64, 5, 0, 20, 0],
        [100, 0, 1, 20, 0, 80],
        [200, 0, 0, 20, 3, 80],
        [300, 3, 1, 23, 40, 80],
        [0, 0, 0, 63, 0, 120],
    ]
    assert plan.s_elements == (20 * 64 + 40 * 16)
    assert plan.scales.tolist() == [2, 2, 2, 2, 0]


def test_entries_are_the_segments_of_a_run_in_their_order() -> None:
    plan = plan_of(
        [5, 6, 7, 8, 9],
        [20, 3, 20, 0, 3],
        gradients=[700, 300, 700, -1, -1],
        is_fresh=[False, True, False, False, True],
        unit_order=[9, 0, 4, 0, 0],
    )
    assert plan.entries.tolist() == [[0, 1, 300, 1], [1, 2, 700, 0]]
    assert plan.chunks[:, :3].tolist() == [[1, 5, 6], [2, 11, 7], [0, 0, 5]]
    assert plan.header[:, 2:].tolist() == [[0, 0], [0, 1], [1, 1], [2, 0], [2, 0], [2, 0]]
    assert plan.num_entries(32) == 1


def test_units_are_cut_into_chunks_from_their_own_first_row() -> None:
    plan = plan_of([5, 2100, 2100], [3, 256, 16], gradients=[300, 700, 300], tile_rows=64)
    assert plan.chunks[:, :3].tolist() == [
        [0, 0, 5],
        [2, 2105, 1024],
        [2, 3129, 1024],
        [2, 4153, 52],
        [1, 5, 2048],
        [1, 2053, 52],
    ]
    assert plan.entries[:, :3].tolist() == [[0, 4, 300], [4, 2, 700]]


def test_a_batch_without_adapters_or_rows_has_only_bare_tiles() -> None:
    plan = plan_of([4, 0], [0, 0], num_rows=20)
    assert plan.used_buckets == ()
    assert plan.num_tiles(0) == 2
    assert plan_of([], []).tiles.shape == (0, 4)


def test_segments_with_more_rows_than_the_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="7 rows, but the segments have 9"):
        plan_of([4, 5], [1, 1], num_rows=7)


def test_what_a_segment_gets_does_not_depend_on_the_others_but_for_its_place() -> None:
    alone = plan_of([50], [16], starts=[5])
    among = plan_of([3, 50, 90], [16, 16, 256], starts=[1, 5, 2])
    own = among.tiles[among.tiles[:, 0] == 1]
    assert np.array_equal(own[:, 1:3] - [3, 0], alone.tiles[:, 1:3])


def test_the_table_has_the_places_of_each_mask() -> None:
    table = site_table(LAYOUT, "cpu")
    assert table.shape == (8, 4, 2)
    for mask in range(8):
        offsets = LAYOUT.site_offsets(1, mask)
        for site in range(4):
            expected = offsets.get(site, (NOT_TARGETED, NOT_TARGETED))
            assert tuple(table[mask, site].tolist()) == expected


def test_buffers_keep_their_place_until_a_plan_does_not_fit(device: torch.device) -> None:
    buffers = TileBuffers(device, num_segments=4, num_tiles=8)
    pointers = [buffers.tiles.data_ptr(), buffers.scales.data_ptr(), buffers.header.data_ptr()]
    for plan in (plan_of([20, 30], [3, 20]), plan_of([5], [256], gradients=[7], scales=[0.25])):
        buffers.write(plan)
        assert buffers.tiles[: len(plan.tiles)].tolist() == plan.tiles.tolist()
        assert buffers.segments[: len(plan.segments)].tolist() == plan.segments.tolist()
        assert buffers.scales[: len(plan.scales)].tolist() == plan.scales.tolist()
        assert buffers.entries[: len(plan.entries)].tolist() == plan.entries.tolist()
        assert buffers.chunks[: len(plan.chunks)].tolist() == plan.chunks.tolist()
        assert buffers.header.tolist() == plan.header.tolist()
    assert pointers == [
        buffers.tiles.data_ptr(),
        buffers.scales.data_ptr(),
        buffers.header.data_ptr(),
    ]
    assert buffers.generation == 0
    large = plan_of([200, 30], [3, 20])
    buffers.write(large)
    assert buffers.generation == 1
    assert buffers.tiles[: len(large.tiles)].tolist() == large.tiles.tolist()
