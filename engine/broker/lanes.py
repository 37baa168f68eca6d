"""Who is served next: deficit round robin over lanes, in weighted tokens.

Each lane is first in, first out. In its turn a lane is granted a quantum and serves what fits; what
is left over is kept while it has work, so that over time lanes share by weight whatever the sizes
of their requests. A lane alone never waits for grants.

Source: Shreedhar and Varghese, "Efficient Fair Queuing Using Deficit Round Robin", 1996.
"""

from bisect import bisect, insort
from collections import deque
from collections.abc import Iterator
from typing import Generic, NamedTuple, TypeVar

Item = TypeVar("Item")


class Place(NamedTuple):
    """Where an item waits."""

    place: int  # in its lane; 1 is next
    ahead: int  # items of other lanes, all of which may go first
    lanes: int  # how many other lanes have items


class _Lane(Generic[Item]):
    __slots__ = ("deficit", "gaps", "is_granted", "items", "key", "num_pushed")

    def __init__(self, key: str) -> None:
        self.key = key
        self.items: deque[tuple[int, Item, int]] = deque()  # weight, item, ticket
        self.num_pushed = 0
        self.gaps: list[int] = []  # tickets behind the first item's that were withdrawn, sorted
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
        return (item for lane in self._lanes.values() for _, item, _ in lane.items)

    def counts(self) -> dict[str, int]:
        """How many items wait, by lane."""
        return {key: len(lane.items) for key, lane in self._lanes.items()}

    def push(self, key: str, item: Item, weight: int) -> int:
        """Append an item to a lane, and return its ticket for `place`."""
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane(key)
            self._turns.append(lane)
        ticket = lane.num_pushed
        lane.num_pushed += 1
        lane.items.append((weight, item, ticket))
        self.size += 1
        self.weight += weight
        return ticket

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
                insort(lane.gaps, entry[2])
                self._forget(lane, entry[0])
                return True
        return False

    def place(self, key: str, ticket: int) -> Place:
        """Where the item with this ticket waits, at a cost that does not grow with the lane."""
        lane = self._lanes[key]
        passed = ticket - lane.items[0][2] - bisect(lane.gaps, ticket)
        return Place(passed + 1, self.size - len(lane.items), len(self._lanes) - 1)

    def check_integrity(self) -> None:
        """Raise AssertionError when the books contradict each other."""
        assert self.size == sum(len(lane.items) for lane in self._lanes.values())
        assert self.weight == sum(w for lane in self._lanes.values() for w, _, _ in lane.items)
        assert sorted(self._lanes) == sorted(lane.key for lane in self._turns)
        assert all(lane.items and lane.deficit >= 0 for lane in self._turns)
        for lane in self._turns:
            places = [self.place(lane.key, ticket).place for _, _, ticket in lane.items]
            assert places == list(range(1, len(lane.items) + 1))

    def _take(self, lane: _Lane[Item]) -> Item:
        weight, item, _ = lane.items.popleft()
        lane.deficit = max(0, lane.deficit - weight)
        self._forget(lane, weight)
        return item

    def _forget(self, lane: _Lane[Item], weight: int) -> None:
        self.size -= 1
        self.weight -= weight
        if not lane.items:
            del self._lanes[lane.key]
            self._turns.remove(lane)
        elif lane.gaps:
            del lane.gaps[: bisect(lane.gaps, lane.items[0][2])]

    def _skip_rounds(self) -> None:
        """Grant at once the whole rounds in which nobody could be served."""
        quantum = self._quantum
        rounds = min((lane.items[0][0] - lane.deficit - 1) // quantum for lane in self._turns)
        for lane in self._turns:
            lane.deficit += max(0, rounds) * quantum
