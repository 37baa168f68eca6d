"""States that runs share until one of them writes."""

import pytest
import torch

from weft.engine.adapters.states import MASTER, MOMENT1, NUM_PLANES, StateArena, StateBlock


def make_arena(num_granules: int = 8) -> StateArena:
    arena = StateArena(num_granules, 16, torch.device("cpu"))
    arena.planes.copy_(torch.arange(NUM_PLANES * num_granules * 16.0).view(NUM_PLANES, -1))
    return arena


def take(arena: StateArena, size: int = 2) -> StateBlock:
    block = arena.take(size)
    assert block is not None
    return block


def content(arena: StateArena, block: StateBlock, plane: int = MASTER) -> torch.Tensor:
    return arena.flat(block, plane, 0, block.size).clone()


def test_sharing_takes_room_at_once_and_copies_nothing() -> None:
    arena = make_arena()
    block, before = take(arena), arena.planes.clone()
    assert arena.share(block)
    arena.check_integrity([block, block])
    assert arena.blocks.num_free == 4
    assert torch.equal(arena.planes, before)


def test_without_room_for_the_copy_nothing_is_shared() -> None:
    arena = make_arena(3)
    block = take(arena)
    assert not arena.share(block)
    arena.check_integrity([block])
    assert arena.own(block, [MASTER]) is block


def test_whoever_writes_first_goes_on_with_a_copy_of_the_planes_it_names() -> None:
    arena = make_arena()
    block = take(arena)
    arena.share(block)
    elsewhere = content(arena, StateBlock(2, 2), MOMENT1)
    own = arena.own(block, [MASTER])
    arena.check_integrity([block, own])
    assert own.start != block.start
    assert torch.equal(content(arena, own), content(arena, block))
    assert torch.equal(content(arena, own, MOMENT1), elsewhere)


def test_the_last_holder_keeps_the_block() -> None:
    arena = make_arena()
    block = take(arena)
    arena.share(block)
    arena.share(block)
    arena.leave(block)
    own = arena.own(block, [MASTER])
    assert own is not block
    assert arena.own(block, [MASTER]) is block
    arena.check_integrity([block, own])
    arena.leave(own)
    arena.leave(block)
    arena.check_integrity([])


def test_a_copy_that_fails_leaves_everybody_what_they_shared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arena = make_arena()
    block = take(arena)
    arena.share(block)

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patch:
        patch.setattr(torch, "_foreach_copy_", fail)
        with pytest.raises(torch.OutOfMemoryError):
            arena.own(block, [MASTER])
    arena.check_integrity([block, block])
    arena.check_integrity([block, arena.own(block, [MASTER])])
