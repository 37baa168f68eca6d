"""Tokens to be scored in place of those of a prompt, as a request brings them. Torch-free."""

from dataclasses import dataclass

import numpy as np

from ...client.errors import BadRequest


@dataclass(frozen=True, slots=True, eq=False)
class PromptTargets:
    """Any number of tokens in place of each of a prompt, from its second on."""

    counts: np.ndarray  # [prompt - 1] integers, how many in place of each
    tokens: np.ndarray  # integers, end to end

    def check(self, prompt_tokens: int, vocab_size: int) -> None:
        """Raise BadRequest unless they are as many as counted, and tokens."""
        counts = self.counts
        if counts.shape != (prompt_tokens - 1,):
            raise BadRequest(
                f"target_counts has shape {list(counts.shape)}, not [{prompt_tokens - 1}]"
            )
        if len(counts) and counts.min() < 0:
            raise BadRequest(f"target_counts holds {counts.min()}")
        total = int(counts.sum(dtype=np.int64))
        if self.tokens.shape != (total,):
            raise BadRequest(
                f"target_tokens has shape {list(self.tokens.shape)}, target_counts add up to {total}"
            )
        check_tokens("target token", self.tokens, vocab_size)


def check_tokens(what: str, tokens: np.ndarray, vocab_size: int) -> None:
    """Raise BadRequest unless all are in the vocabulary."""
    for token in (int(tokens.min()), int(tokens.max())) if len(tokens) else ():
        if not 0 <= token < vocab_size:
            raise BadRequest(f"{what} {token} is outside 0 .. {vocab_size - 1}")
