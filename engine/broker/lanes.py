"""Who is served next: deficit round robin over lanes, in weighted tokens.

Each lane is first in, first out. In its turn a lane is granted a quantum and serves what fits; what
is left over is kept while it has work, so that over time lanes share by weight whatever the sizes
of their requests. A lane alone never waits for grants.

Source: Shreedhar and Varghese, "Efficient Fair Queuing Using Deficit Round Robin", 1996.
"""

from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class _Lane(Generic[Item]):
    __slots__ = ("deficit", "is_granted", "items", "key")

    def __init__(self, key: str) -> None:
        self.key = key
        self.items: deque[tuple[int, Item]] = deque()  # weight, item
        self.deficit = 0
        self.is_granted = False


class Lanes(Generic[Item]):
    """Queues by key, served in fair order."""

    def __init__(self, quantum: int) -> None:
        self._quantum = quantum
        self._lanes: dict[str, _Lane[Item]] = {}
        self._turns: deque[_Lane[Item]] = deque()  # lanes with work, whose turn it is first
        self.size = 0  # how many wait
        self.weight = 0  # of all that wait

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[Item]:
        return (item for lane in self._lanes.values() for _, item in lane.items)

    def counts(self) -> dict[str, int]:
        """How many items wait, by lane."""
        return {key: len(lane.items) for key, lane in self._lanes.items()}

    def push(self, key: str, item: Item, weight: int) -> None:
        """Append an item to a lane."""
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane(key)
            self._turns.append(lane)
        lane.items.append((weight, item))
        self.size += 1
        self.weight += weight

    def pop(self, room: float) -> Item | None:
        """Remove and return what is next, or None when nothing waits or it exceeds `room`.

        An item too heavy for the room is waited for: lighter ones do not overtake it.
        """
        turns = self._turns
        if not turns:
            return None
        visited = 0
        while True:
            lane = turns[0]
            weight = lane.items[0][0]
            if weight <= lane.deficit or len(turns) == 1:
                break
            if not lane.is_granted:
                lane.is_granted = True
                lane.deficit += self._quantum
                continue
            lane.is_granted = False
            turns.rotate(-1)
            visited += 1
            if visited == len(turns):
                self._skip_rounds()
        if weight > room:
            return None
        return self._take(lane)

    def remove(self, key: str, item: Item) -> bool:
        """Withdraw an item; whether it was there."""
        lane = self._lanes.get(key)
        for entry in lane.items if lane is not None else ():
            if entry[1] is item and lane is not None:
                lane.items.remove(entry)
                self._forget(lane, entry[0])
                return True
        return False

    def check_integrity(self) -> None:
        """Raise AssertionError when the books contradict each other."""
        assert self.size == sum(len(lane.items) for lane in self._lanes.values())
        assert self.weight == sum(w for lane in self._lanes.values() for w, _ in lane.items)
        assert sorted(self._lanes) == sorted(lane.key for lane in self._turns)
        assert all(lane.items and lane.deficit >= 0 for lane in self._turns)

    def _take(self, lane: _Lane[Item]) -> Item:
        weight, item = lane.items.popleft()
        lane.deficit = max(0, lane.deficit - weight)
        self._forget(lane, weight)
        return item

    def _forget(self, lane: _Lane[Item], weight: int) -> None:
        self.size -= 1
        self.weight -= weight
        if not lane.items:
            del self._lanes[lane.key]
            self._turns.remove(lane)

    def _skip_rounds(self) -> None:
        """Grant at once the whole rounds in which nobody could be served."""
        quantum = self._quantum
        rounds = min((lane.items[0][0] - lane.deficit - 1) // quantum for lane in self._turns)
        for lane in self._turns:
            lane.deficit += max(0, rounds) * quantum
