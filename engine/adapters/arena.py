"""Who holds which part of an arena: a first-fit allocator over a line of granules. No tensors."""

from bisect import insort


class Blocks:
    """Free and used ranges of `size` granules, of which the first `reserved` are never given out."""

    def __init__(self, size: int, reserved: int = 0) -> None:
        self.size = size
        self.reserved = reserved
        self._free: list[tuple[int, int]] = []  # (start, end), sorted, never touching
        if size > reserved:
            self._free.append((reserved, size))
        self._used: dict[int, int] = {}  # start -> end

    @property
    def num_free(self) -> int:
        """Granules that are free, perhaps in pieces."""
        return sum(end - start for start, end in self._free)

    def levels(self, granule_bytes: int) -> tuple[int, int]:
        """Bytes in use, and bytes that there are to be given out."""
        size = self.size - self.reserved
        return (size - self.num_free) * granule_bytes, size * granule_bytes

    def take(self, count: int) -> int | None:
        """Start of a range of `count` granules, or None when no free range is that long."""
        if count <= 0:
            raise ValueError(f"a block has at least one granule, not {count}")
        for index, (start, end) in enumerate(self._free):
            if end - start >= count:
                if end - start == count:
                    del self._free[index]
                else:
                    self._free[index] = (start + count, end)
                self._used[start] = start + count
                return start
        return None

    def give(self, start: int) -> None:
        """Free the range that `take` gave at `start`."""
        end = self._used.pop(start)
        insort(self._free, (start, end))
        index = self._free.index((start, end))
        if index + 1 < len(self._free) and self._free[index + 1][0] == end:
            self._free[index : index + 2] = [(start, self._free[index + 1][1])]
        if index and self._free[index - 1][1] == start:
            self._free[index - 1 : index + 1] = [(self._free[index - 1][0], self._free[index][1])]

    def check_integrity(self) -> None:
        """Raise AssertionError unless free and used ranges tile the arena without touching frees."""
        ranges = sorted([*self._free, *self._used.items()])
        end = self.reserved
        for start, stop in ranges:
            assert start == end, f"gap or overlap at granule {end}"
            assert stop > start, f"empty range at granule {start}"
            end = stop
        assert end == self.size or not ranges, f"ends at {end}, not at {self.size}"
        ends = {stop for _, stop in self._free}
        assert not ends & {start for start, _ in self._free}, "free neighbours are not merged"
