"""The training states of runs: blocks of an arena of fp32 planes, which runs share until one writes.

A block that several runs share has a spare block for each run but one. A run that is about to write
copies the content to a spare and goes on there alone; a run that leaves gives a spare back. So
nobody waits for room at a write, nobody owns what is shared, and the last one never copies.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .arena import Blocks

MASTER, GRADIENT, STAGE, MOMENT1, MOMENT2 = range(5)  # gradient and stage swap, see store.Run
NUM_PLANES = 5


@dataclass(eq=False, slots=True)
class StateBlock:
    """Where a state lies, at equal offsets in all planes."""

    start: int  # granule
    size: int  # granules
    spares: list[int] = field(default_factory=list)  # starts of as long blocks, of the other runs


class StateArena:
    """Five planes with equal offsets, and who holds which part of them."""

    def __init__(self, num_granules: int, granule: int, device: torch.device) -> None:
        self.planes = torch.empty(NUM_PLANES, num_granules * granule, device=device)
        self.blocks = Blocks(num_granules)
        self._granule = granule

    def take(self, size: int) -> StateBlock | None:
        """A block of `size` granules with one holder, or None when there is no room."""
        start = self.blocks.take(size)
        return None if start is None else StateBlock(start, size)

    def share(self, block: StateBlock) -> bool:
        """Let one more run hold a block; whether there was room for the copy it may need."""
        spare = self.blocks.take(block.size)
        if spare is not None:
            block.spares.append(spare)
        return spare is not None

    def leave(self, block: StateBlock) -> None:
        """Give up one hold."""
        self.blocks.give(block.spares.pop() if block.spares else block.start)

    def own(self, block: StateBlock, planes: Sequence[int]) -> StateBlock:
        """A block with the same content that nobody else holds: itself, or a copy of these planes.

        The caller gives up its hold on `block` when another is returned. Allocates nothing.
        """
        if not block.spares:
            return block
        copy = StateBlock(block.spares[-1], block.size)
        torch._foreach_copy_(
            [self.flat(copy, plane, 0, block.size) for plane in planes],
            [self.flat(block, plane, 0, block.size) for plane in planes],
        )
        block.spares.pop()  # not before the copy is there
        return copy

    def flat(self, block: StateBlock, plane: int, first: int, size: int) -> Tensor:
        """Granules first..first + size - 1 of a block in one plane, [elements]."""
        start = (block.start + first) * self._granule
        return self.planes[plane, start : start + size * self._granule]

    def check_integrity(self, held: Iterable[StateBlock]) -> None:
        """Raise AssertionError unless these are all holds, one entry each, and no block overlaps."""
        self.blocks.check_integrity()
        holders = Counter(held)
        for block, number in holders.items():
            assert len(block.spares) == number - 1, f"{number} holders, {block.spares} spare"
        taken = [(start, block.size) for block in holders for start in (block.start, *block.spares)]
        assert sum(size for _, size in taken) == self.blocks.size - self.blocks.num_free, "a leak"
        assert len({start for start, _ in taken}) == len(taken), "a block is held twice"
