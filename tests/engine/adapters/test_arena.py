"""The block allocator."""

import random

import pytest

from weft.engine.adapters.arena import Blocks


def test_a_freed_block_is_given_again_and_neighbours_merge() -> None:
    blocks = Blocks(10, reserved=1)
    first, second = blocks.take(4), blocks.take(5)
    assert (first, second, blocks.take(1)) == (1, 5, None)
    assert first is not None
    assert second is not None
    blocks.give(first)
    assert blocks.take(5) is None
    blocks.give(second)
    assert blocks.take(9) == 1


def test_an_empty_block_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Blocks(10).take(0)


@pytest.mark.parametrize("seed", range(5))
def test_random_use_keeps_the_ranges_tiled(seed: int) -> None:
    rng = random.Random(seed)
    blocks = Blocks(200, reserved=rng.choice([0, 1]))
    held: list[int] = []
    for _ in range(300):
        if held and rng.random() < 0.5:
            blocks.give(held.pop(rng.randrange(len(held))))
        else:
            start = blocks.take(rng.randint(1, 40))
            if start is not None:
                held.append(start)
        blocks.check_integrity()


def test_levels_count_what_can_be_given_out() -> None:
    blocks = Blocks(10, reserved=1)
    start = blocks.take(3)
    assert start is not None
    assert blocks.levels(granule_bytes=8) == (24, 72)
    blocks.give(start)
    assert blocks.levels(granule_bytes=8) == (0, 72)
