"""The tensors of a sequence's state: what they take, and whether a chunk makes use of all of them.

L tokens of a sequence.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..model.linear import FrozenLinears
from .model import SequenceState, SequentialHosted


def num_bytes(state: SequenceState) -> int:
    """What a state takes on its device, storages of views whole."""
    storages = [tensor.untyped_storage() for tensor in _tensors(state.cache, set())]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def chunks_use_all(model: SequentialHosted, tokens_L: Tensor) -> bool:
    """Whether each tensor of a state that the next token feels is felt by the next chunk, too.

    Some codes start a recurrence anew for several tokens. Beside their other inputs that can be
    less than the rounding of logits, so each tensor in turn is made NaN instead.
    """
    prompt_L, chunk_L = tokens_L[: len(tokens_L) // 2], tokens_L[len(tokens_L) // 2 :]
    state = model.new_state()
    model.advance(state, prompt_L, FrozenLinears())
    for index in range(len(list(_floats(state)))):
        by_token, by_chunk = (
            _feels(model, state, index, piece) for piece in (chunk_L[:1], chunk_L)
        )
        if by_token and not by_chunk:
            return False
    return True


def _feels(model: SequentialHosted, state: SequenceState, index: int, tokens_L: Tensor) -> bool:
    """Whether the output of the last of these tokens depends on one tensor of a state."""
    copied = model.copy_state(state)
    list(_floats(copied))[index].fill_(torch.nan)
    hidden_LD = model.advance(copied, tokens_L, FrozenLinears())
    return bool(hidden_LD[-1].isnan().any())


def _floats(state: SequenceState) -> Iterator[Tensor]:
    return (each for each in _tensors(state.cache, set()) if each.is_floating_point())


def _tensors(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """Every tensor that hangs on an object, always in the same order."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _tensors(each, seen)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each, seen)
    elif hasattr(value, "__dict__"):
        yield from _tensors(vars(value), seen)
