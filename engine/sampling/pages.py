"""Which pages of the KV cache belong to whom. Pure: page numbers only, no tensors.

A page holds the keys and values of `page_size` consecutive tokens of a sequence. Full pages of a
prompt never change again, so all samples of the prompt count references to the same ones; the last,
partly filled page is written on, so every sample needs a copy of its own.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class OutOfPages(Exception):
    """More pages were asked for than are free; admission is there to prevent it."""


@dataclass(frozen=True, slots=True)
class Copy:
    """The content of page `source` is to be copied to page `target` before either is written."""

    source: int
    target: int


def pages_for(num_tokens: int, page_size: int) -> int:
    """Return how many pages hold `num_tokens` tokens."""
    return -(-num_tokens // page_size)


class PagePool:
    """Reference counts of all pages; a page without references is free."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        if num_pages < 1 or page_size < 1:
            raise ValueError(f"{num_pages} pages of {page_size} tokens, each must be at least 1")
        self.num_pages = num_pages
        self.page_size = page_size
        self._references = [0] * num_pages
        self._free = list(range(num_pages - 1, -1, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Take `count` free pages, each with one reference, or none at all.

        Raises:
            OutOfPages: fewer are free.
        """
        if count > len(self._free):
            raise OutOfPages(f"{count} pages asked for, {len(self._free)} free")
        pages = [self._free.pop() for _ in range(count)]
        for page in pages:
            self._references[page] = 1
        return pages

    def share(self, pages: Iterable[int]) -> None:
        """Add a reference to each of these pages, which must be in use."""
        for page in pages:
            assert self._references[page] > 0, f"page {page} is free"
            self._references[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """Drop a reference to each of these pages; those without any left become free."""
        for page in pages:
            assert self._references[page] > 0, f"page {page} is free"
            self._references[page] -= 1
            if not self._references[page]:
                self._free.append(page)

    def fork(self, pages: Sequence[int], num_tokens: int) -> tuple[list[int], Copy | None]:
        """Give a new owner the first `num_tokens` tokens of a sequence, to write on behind them.

        Full pages are shared, a partly filled last one is replaced by a new page.

        Returns:
            The new owner's pages, and the copy to make unless the last page is full.

        Raises:
            OutOfPages: a new page is needed and none is free.
        """
        num_full, rest = divmod(num_tokens, self.page_size)
        own = self.allocate(1 if rest else 0)
        self.share(pages[:num_full])
        copy = Copy(pages[num_full], own[0]) if rest else None
        return [*pages[:num_full], *own], copy

    def check_integrity(self, held: Iterable[Sequence[int]]) -> None:
        """Raise AssertionError unless the owners' page lists explain every reference and free page."""
        counts = Counter(page for pages in held for page in pages)
        expected = [counts[page] for page in range(self.num_pages)]
        assert expected == self._references, "reference counts differ from the pages held"
        free = [page for page, count in enumerate(expected) if not count]
        assert sorted(self._free) == free, "the free list differs from the pages without reference"
