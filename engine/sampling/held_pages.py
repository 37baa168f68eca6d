"""The pages of a cache that prompts and samples hold."""

from collections.abc import Iterable, Sequence

from .kv_cache import KVCache
from .pages import Copy, PagePool, pages_for
from .sample_state import Active, Holder, Sample


class HeldPages:
    """Hands out the pages of a cache to prompts and samples, and takes them back.

    A prompt holds its pages until all its samples have their own, or ended.
    """

    def __init__(self, cache: KVCache) -> None:
        self.pool = PagePool(cache.num_pages, cache.page_size)
        self._cache = cache
        self._pages: dict[Holder, list[int]] = {}

    def of(self, holder: Holder) -> Sequence[int]:
        """The pages that a prompt or sample holds now."""
        return self._pages[holder]

    def begin(self, active: Active, num_tokens: int) -> None:
        """Give a prompt clean pages for its tokens."""
        self._pages[active] = self.pool.allocate(pages_for(num_tokens, self.pool.page_size))
        self._cache.clear(self._pages[active])

    def fork(self, ready: Sequence[tuple[Active, Sample]]) -> None:
        """Give samples of prefilled prompts pages to go on with; an only sample takes them over."""
        copies: list[Copy] = []
        for active, sample in ready:
            if len(active.samples) == 1:
                self._pages[sample] = self._pages.pop(active)
                continue
            num_tokens = len(active.request.tokens)
            self._pages[sample], copy = self.pool.fork(self._pages[active], num_tokens)
            copies += [] if copy is None else [copy]
        self._cache.copy(copies)
        for active, _ in ready:
            self.release_prompt(active)

    def extend(self, running: Iterable[tuple[Sample, Active]]) -> None:
        """Give every running sample the page that its next token needs."""
        taken: list[int] = []
        for sample, active in running:
            pages = self._pages[sample]
            num_cached = len(active.request.tokens) + len(sample.tokens) - 1
            if num_cached == len(pages) * self.pool.page_size:
                pages += self.pool.allocate(1)
                taken.append(pages[-1])
        self._cache.clear(taken)

    def release(self, holder: Holder) -> None:
        """Take back all pages of a sample or a prompt."""
        self.pool.release(self._pages.pop(holder, ()))

    def release_prompt(self, active: Active) -> None:
        """Take back a prompt's own hold on its pages unless a sample has yet to start from them."""
        if all(sample in self._pages or sample.stop_reason for sample in active.samples):
            self.release(active)

    def check_integrity(self, requests: Iterable[Active]) -> None:
        """Raise AssertionError unless the pages in use are those that these requests hold."""
        holders = {holder for active in requests for holder in (active, *active.samples)}
        assert holders >= self._pages.keys(), "pages are held by what is not in work"
        self.pool.check_integrity(self._pages.values())
