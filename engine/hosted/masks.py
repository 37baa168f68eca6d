"""Read from transformers' mask functions which keys a layer sees, instead of building masks.

A mask function says for a query and a key whether one sees the other, for any position. Asked at
positions all over the context it shows whether it is the causal mask, or that with a window; what
is neither cannot be packed.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

MaskFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class Unpackable(Exception):
    """A modelling code does something that a packed batch does not have."""


@dataclass(frozen=True, slots=True)
class Window:
    """Stands where a layer expects its mask: how many keys a query sees, 0 for all before it.

    Masks are made for layers that a model may not have, so what is wrong with one is said only to
    a layer that uses it.
    """

    size: int = 0
    problem: str = ""


@dataclass(slots=True)
class Masks:
    """The windows a model was seen to use, by the local size transformers states with a mask.

    Args:
        max_context: positions to ask about.
    """

    max_context: int
    is_learning: bool = True  # otherwise a mask not seen before is refused
    _windows: dict[int | None, Window] = field(default_factory=dict)

    def window(self, local_size: int | None, mask_function: MaskFunction) -> Window:
        """The window of a mask."""
        if self.is_learning:
            found = read_window(mask_function, local_size, self.max_context)
            if self._windows.setdefault(local_size, found) != found:
                return Window(problem=f"two of its masks of local size {local_size} differ")
        unknown = Window(problem=f"a mask of local size {local_size} is new since it was loaded")
        return self._windows.get(local_size, unknown)


def read_window(
    mask_function: MaskFunction, local_size: int | None, max_context: int, num_queries: int = 64
) -> Window:
    """Find out what a mask function is.

    Asked are queries spread over the context, each about the keys at both ends and around itself
    and the window's edge, and about some between.
    """
    size = local_size or 0
    queries_Q1 = torch.linspace(0, max_context - 1, num_queries).long()[:, None]
    near = torch.arange(-2, 3)
    spread = torch.linspace(0, max_context - 1, num_queries).long().expand(num_queries, -1)
    parts = [queries_Q1 + near, near.expand(num_queries, -1), queries_Q1 - size + near, spread]
    keys_QK = torch.cat(parts, 1).clamp(0, max_context - 1)
    zero = torch.zeros((), dtype=torch.int64)
    try:
        sees_QK = mask_function(zero, zero, queries_Q1, keys_QK).expand_as(keys_QK)
    except Exception as error:  # the function is the modelling code's
        return Window(problem=f"its mask cannot be asked: {type(error).__name__}: {error}")
    causal_QK = keys_QK <= queries_Q1
    if torch.equal(sees_QK, causal_QK):
        return Window()
    if size and torch.equal(sees_QK, causal_QK & (keys_QK > queries_Q1 - size)):
        return Window(size)
    return Window(problem=f"its mask is no sliding window (local size {local_size})")
