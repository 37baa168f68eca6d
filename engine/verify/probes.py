"""What the models are asked: a few short sequences, the same for both sides."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from .tokens import TEXTS

LENGTHS = (40, 1, 17, 64)
FAR_LENGTH = 16
_SEED = 20


@dataclass(frozen=True, slots=True)
class Probe:
    """One sequence; it begins at position `start`."""

    tokens: tuple[int, ...]
    start: int = 0


def make_probes(tokenizer: Any | None, vocab_size: int, max_context: int) -> list[Probe]:
    """Sequences of several lengths, of text where there is a tokenizer, from position 0."""
    lengths = [min(length, max_context) for length in LENGTHS]
    pool = make_pool(tokenizer, vocab_size, sum(lengths))
    bounds = np.cumsum([0, *lengths])
    return [Probe(tuple(pool[first:last])) for first, last in pairwise(bounds)]


def make_pool(tokenizer: Any | None, vocab_size: int, num_tokens: int) -> list[int]:
    """So many tokens of text, repeated; random ones where there is no tokenizer."""
    ids = [] if tokenizer is None else tokenizer.encode(" ".join(TEXTS), add_special_tokens=False)
    text = [token for token in ids if token < vocab_size]
    if not text:
        text = np.random.default_rng(_SEED).integers(0, vocab_size, num_tokens).tolist()
    return (text * (num_tokens // len(text) + 1))[:num_tokens]


def far_probe(probes: list[Probe], max_context: int) -> Probe | None:
    """A sequence that ends at the last position of the context, where scaling matters most."""
    tokens = probes[0].tokens[:FAR_LENGTH]
    start = max_context - len(tokens)
    return Probe(tokens, start) if start > 0 else None
