"""What a request takes of the sampler's memory: pages of a cache, or bytes of states. Pure."""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

from ...client.errors import BadRequest
from .admission import Entry
from .pages import pages_for


@dataclass(frozen=True, slots=True)
class PageCosts:
    """Pages of a cache in which the samples of a prompt share its full pages."""

    page_size: int  # tokens
    unit: str = "pages"

    def prompt(self, entry: Entry) -> int:
        """Pages of the prompt."""
        return pages_for(entry.prompt_tokens, self.page_size)

    def sample(self, entry: Entry) -> int:
        """Pages of one sample beyond the prompt's full ones; an only sample takes the last over."""
        if entry.max_new_tokens == 1:
            return 0
        total = pages_for(entry.prompt_tokens + entry.max_new_tokens - 1, self.page_size)
        if entry.num_samples == 1:
            return total - self.prompt(entry)
        return total - entry.prompt_tokens // self.page_size

    def room(self, prompt_tokens: int, num_samples: int, capacity: int) -> int:
        """Tokens of a prompt and one of its samples that fit."""
        copied = 1 if num_samples > 1 else 0  # the prompt's last page
        return (capacity - copied) * self.page_size


@dataclass(frozen=True, slots=True)
class StateCosts:
    """Bytes of states, of which every sample of a prompt has a whole one."""

    state_bytes: Callable[[int], int]  # of a state with so many tokens, non-decreasing
    max_context: int  # tokens of one sequence
    unit: str = "bytes"

    def prompt(self, entry: Entry) -> int:
        """Bytes of the prompt's state."""
        return self.state_bytes(entry.prompt_tokens)

    def sample(self, entry: Entry) -> int:
        """Bytes of one sample's state; an only sample takes the prompt's over and lets it grow."""
        if entry.max_new_tokens == 1:
            return 0
        total = self.state_bytes(entry.prompt_tokens + entry.max_new_tokens - 1)
        return total - (self.prompt(entry) if entry.num_samples == 1 else 0)

    def room(self, prompt_tokens: int, num_samples: int, capacity: int) -> int:
        """Tokens of a prompt and one of its samples that fit.

        Raises:
            BadRequest: not even the first token of a sample fits.
        """

        def needed(max_new_tokens: int) -> int:
            entry = Entry(None, prompt_tokens, max_new_tokens, num_samples)
            return self.prompt(entry) + self.sample(entry)

        if needed(1) > capacity:
            raise BadRequest(
                f"a prompt of {prompt_tokens} tokens needs {needed(1)} bytes of state, "
                f"the sampler has {capacity}",
                "too_large",
            )
        most = max(self.max_context - prompt_tokens, 1)
        return prompt_tokens + bisect_right(range(1, most + 1), capacity, key=needed)
