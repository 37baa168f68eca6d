"""Base models that run through transformers' modelling code: packed, or a sequence at a time.

T tokens of a batch, L tokens of one sequence, D model width.
"""

import copy
import inspect
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..model.attention import Attention
from ..model.config import Site
from ..model.linear import DenseLinear, Linears
from .current import Pass, running
from .facts import HostedFacts
from .masks import Masks
from .reference import CACHE_FIELDS


@dataclass(slots=True, eq=False)
class Parts:
    """A module with its pieces swapped, and what is known about it."""

    module: Any
    facts: HostedFacts
    sites: Sequence[Site]
    head: DenseLinear
    scale: float  # of hidden states before the head
    softcap: float


class _Hosted:
    """What both ways of running share."""

    def __init__(self, parts: Parts) -> None:
        self._module, self._scale = parts.module, parts.scale
        self.config = parts.facts
        self.sites = list(parts.sites)
        self.head = parts.head
        self.logit_softcap = parts.softcap
        self.notes = [parts.facts.context_note] if parts.facts.context_note else []
        self.device, self.dtype = parts.head.weight_OD.device, parts.head.weight_OD.dtype

    def parameters(self) -> Iterator[Tensor]:
        """All tensors of the module, shared ones once."""
        yield from self._module.parameters()
        yield from self._module.buffers()

    def _hidden(self, forward_pass: Pass) -> Tensor:
        if forward_pass.hidden_TD is None:
            raise RuntimeError("the modelling code did not reach its output layer")
        hidden_TD = forward_pass.hidden_TD.to(self.dtype)
        return hidden_TD if self._scale == 1 else hidden_TD * self._scale


class PackedModel(_Hosted):
    """A model whose positions and attention can be handed in; implements `BaseModel`."""

    runs_on = "packed"
    uses_triton = False

    def __init__(self, parts: Parts, masks: Masks) -> None:
        super().__init__(parts)
        self._masks = masks

    def forward(
        self,
        tokens_T: Tensor,
        positions_T: Tensor,
        attention: Attention,
        linears: Linears,
        *,
        checkpoint_layers: Collection[int] = (),
    ) -> Tensor:
        """See `BaseModel.forward`; `checkpoint_layers` must be empty."""
        _refuse_recomputation(checkpoint_layers)
        head_dim = self.config.head_dim
        forward_pass = Pass(linears, len(tokens_T), attention, self._masks, head_dim)
        with running(forward_pass):
            self._module(input_ids=tokens_T[None], position_ids=positions_T[None], use_cache=False)
        return self._hidden(forward_pass)


@dataclass(slots=True, eq=False)
class SequenceState:
    """What the modelling code keeps of one sequence."""

    num_tokens: int = 0
    cache: Any = None
    field: str = ""  # under which name the cache goes in and out


@dataclass(frozen=True, slots=True)
class StateCost:
    """Bytes of a state on the device."""

    base: int
    per_token: int


class SequentialHosted(_Hosted):
    """A model with attention and cache of its own; implements `SequentialModel`.

    Args:
        continues_in_chunks: see `SequentialModel`.
        cost: of states, measured.
    """

    runs_on = "sequential"
    uses_triton = False

    def __init__(self, parts: Parts, *, continues_in_chunks: bool, cost: StateCost) -> None:
        super().__init__(parts)
        self.continues_in_chunks = continues_in_chunks
        self._cost = cost
        self._takes_positions = takes_positions(parts.module)

    def forward(
        self,
        tokens_T: Tensor,
        positions_T: Tensor,
        attention: Attention | None,
        linears: Linears,
        *,
        checkpoint_layers: Collection[int] = (),
    ) -> Tensor:
        """See `BaseModel.forward`; exactly one sequence, and the attention is not used."""
        _refuse_recomputation(checkpoint_layers)
        if not torch.equal(positions_T.cpu(), torch.arange(len(tokens_T))):
            raise ValueError("the rows are not exactly one sequence from its first token on")
        forward_pass = Pass(linears, len(tokens_T))
        with running(forward_pass):
            self._module(input_ids=tokens_T[None], use_cache=False)
        return self._hidden(forward_pass)

    def new_state(self) -> SequenceState:
        """See `SequentialModel.new_state`."""
        return SequenceState()

    def copy_state(self, state: SequenceState) -> SequenceState:
        """See `SequentialModel.copy_state`."""
        return SequenceState(state.num_tokens, copy.deepcopy(state.cache), state.field)

    def state_bytes(self, num_tokens: int) -> int:
        """See `SequentialModel.state_bytes`."""
        return self._cost.base + self._cost.per_token * num_tokens

    @torch.no_grad()
    def advance(self, state: SequenceState, tokens_L: Tensor, linears: Linears) -> Tensor:
        """See `SequentialModel.advance`."""
        if state.num_tokens and len(tokens_L) > 1 and not self.continues_in_chunks:
            raise ValueError(f"{len(tokens_L)} tokens for a state that takes one at a time")
        forward_pass = Pass(linears, len(tokens_L))
        arguments: dict[str, Any] = {state.field: state.cache} if state.num_tokens else {}
        if self._takes_positions:  # what some codes make of their caches by themselves is wrong
            end = state.num_tokens + len(tokens_L)
            positions_L = torch.arange(state.num_tokens, end, device=tokens_L.device)
            arguments["position_ids"] = positions_L[None]
        with running(forward_pass):
            output = self._module(input_ids=tokens_L[None], use_cache=True, **arguments)
        fields = [field for field in CACHE_FIELDS if output.get(field) is not None]
        if not fields:
            raise RuntimeError(f"{type(self._module).__name__} hands out no cache")
        state.field, state.cache = fields[0], output[fields[0]]
        state.num_tokens += len(tokens_L)
        return self._hidden(forward_pass)


def takes_positions(module: Any) -> bool:
    """Whether a modelling code lets the caller say where each token stands."""
    return "position_ids" in inspect.signature(module.forward).parameters


def _refuse_recomputation(checkpoint_layers: Collection[int]) -> None:
    if checkpoint_layers:
        raise ValueError("a hosted model does not compute activations again for backward")
