"""What the swapped pieces of a modelling code find during one forward pass of ours."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from torch import Tensor

from ..model.attention import Attention
from ..model.linear import Linears
from .masks import Masks


@dataclass(slots=True, eq=False)
class Pass:
    """One forward pass: what it computes with, and what it leaves."""

    linears: Linears
    num_rows: int
    attention: Attention | None = None  # None: the modelling code uses its own
    masks: Masks | None = None
    head_dim: int = 0  # keys and values are padded to it
    hidden_TD: Tensor | None = None  # what the unembedding was given
    called: set[int] = field(default_factory=set)  # sites


_CURRENT: ContextVar[Pass] = ContextVar("weft forward pass")


@contextmanager
def running(forward_pass: Pass) -> Iterator[Pass]:
    """Let the swapped pieces see this pass, in this thread and until the end of the block."""
    token = _CURRENT.set(forward_pass)
    try:
        yield forward_pass
    finally:
        _CURRENT.reset(token)


def current() -> Pass:
    """The pass under way; raises LookupError outside of one."""
    return _CURRENT.get()
