"""Whose turn it is when sequences are computed one at a time. Pure: names and counts of tokens."""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Turn:
    """Compute tokens first..last - 1 of those that a sequence waits with."""

    name: Hashable
    first: int
    last: int


class Rotation:
    """Sequences that wait with tokens to compute, served in turn.

    A turn is at most one chunk; what is left of a sequence goes behind all others, so a long
    prompt delays nobody by more than a chunk at a time. Chunks depend on the sequence alone.

    Args:
        chunk_tokens: tokens of a turn.
        step_tokens: tokens of all turns of a step, of which there is at least one.
        pass_tokens: what a turn counts at least, since a forward pass of one token takes about as
            long as one of so many.
    """

    def __init__(self, *, chunk_tokens: int, step_tokens: int, pass_tokens: int) -> None:
        if min(chunk_tokens, step_tokens, pass_tokens) < 1:
            raise ValueError(f"{chunk_tokens}, {step_tokens}, {pass_tokens} must be at least 1")
        self.chunk_tokens = chunk_tokens
        self.step_tokens = step_tokens
        self.pass_tokens = pass_tokens
        self._waiting: dict[Hashable, tuple[int, int]] = {}  # computed, of how many

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def num_rows_ahead(self) -> int:
        """Tokens of the largest turn of the next step."""
        return max((turn.last - turn.first for turn in self._turns()), default=0)

    def add(self, name: Hashable, num_tokens: int) -> None:
        """Let a sequence wait with so many tokens, behind all others."""
        assert name not in self._waiting, "the sequence already waits"
        self._waiting[name] = (0, num_tokens)

    def remove(self, name: Hashable) -> None:
        """Forget a sequence, whether it waits or not."""
        self._waiting.pop(name, None)

    def next_step(self) -> list[Turn]:
        """The turns of the next step."""
        turns = list(self._turns())
        for turn in turns:
            _, count = self._waiting.pop(turn.name)
            if turn.last < count:
                self._waiting[turn.name] = (turn.last, count)
        return turns

    def _turns(self) -> Iterator[Turn]:
        room = self.step_tokens
        for number, (name, (computed, count)) in enumerate(self._waiting.items()):
            last = min(computed + self.chunk_tokens, count)
            room -= max(last - computed, self.pass_tokens)
            if number and room < 0:
                return
            yield Turn(name, computed, last)
