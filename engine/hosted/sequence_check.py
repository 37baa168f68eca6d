"""Whether a module runs one sequence at a time, whole and piece by piece, and what that costs.

L tokens of a sequence, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...client.errors import BadRequest
from ..model.layers import capped
from ..model.linear import FrozenLinears
from .model import Parts, SequenceState, SequentialHosted, StateCost
from .probes import WatchingLinears, reached_rows
from .reference import Reference
from .rounding import Rounding, disagreement
from .state_tensors import chunks_use_all, num_bytes

_FREE = StateCost(0, 0)


def check_sequential(
    parts: Parts, reference: Reference, probes: Sequence[Tensor]
) -> tuple[SequentialHosted, set[int]]:
    """Try the module on the probes, one by one.

    Returns:
        The model, and the sites that the output depends on.

    Raises:
        BadRequest: it does not compute what it did before its linears were swapped, or cannot go
            on from its own cache.
    """
    name, rounding = type(parts.module).__name__, reference.rounding
    model = SequentialHosted(parts, continues_in_chunks=True, cost=_FREE)
    reached: set[int] | None = None
    try:
        for tokens_L, expected_LV in zip(probes, reference.logits, strict=True):
            found, sites = _whole(model, tokens_L)
            if difference := disagreement(found, expected_LV, rounding):
                raise BadRequest(f"with its linears swapped {difference}")
            if difference := _stepwise(model, tokens_L, expected_LV, rounding):
                raise BadRequest(f"from its own cache {difference}")
            reached = sites if reached is None else reached & sites
        has_chunks = chunks_use_all(model, probes[0]) and not any(
            _in_chunks(model, tokens_L, expected_LV, rounding)
            for tokens_L, expected_LV in zip(probes, reference.logits, strict=True)
        )
        cost = _state_cost(model, torch.cat(list(probes)))
    except BadRequest as error:
        raise BadRequest(f"{name} cannot be run faithfully: {error}") from error
    except Exception as error:  # the modelling code raises what it likes
        raise BadRequest(f"{name} cannot be run: {type(error).__name__}: {error}") from error
    model = SequentialHosted(parts, continues_in_chunks=has_chunks, cost=cost)
    return model, reached or set()


def _whole(model: SequentialHosted, tokens_L: Tensor) -> tuple[Tensor, set[int]]:
    """Logits of a sequence and the sites they depend on; raises BadRequest unless it is causal."""
    watch = WatchingLinears()
    positions = torch.arange(len(tokens_L), device=tokens_L.device)
    hidden_LD = model.forward(tokens_L, positions, None, watch)
    if not watch.calls:
        return _logits(model, hidden_LD), set()
    half = len(tokens_L) // 2
    if any(rows[half:].any() for rows in reached_rows(watch, hidden_LD, half).values()):
        raise BadRequest("it is not causal: earlier outputs depend on later tokens")
    reached = reached_rows(watch, hidden_LD, len(tokens_L))
    return _logits(model, hidden_LD), {site for site, rows in reached.items() if rows.any()}


@torch.no_grad()
def _logits(model: SequentialHosted, hidden_LD: Tensor) -> Tensor:
    return capped(model.head.forward(hidden_LD.detach()), model.logit_softcap)


def _advance(model: SequentialHosted, state: SequenceState, *pieces: Tensor) -> Tensor:
    hidden = [model.advance(state, piece, FrozenLinears()) for piece in pieces]
    return _logits(model, torch.cat(hidden))


def _stepwise(
    model: SequentialHosted, tokens_L: Tensor, expected_LV: Tensor, rounding: Rounding
) -> str:
    """A prompt, then token by token, beside a copy that goes another way; how it differs."""
    state = model.new_state()
    prompt, steps = tokens_L[:6], torch.split(tokens_L[6:], 1)
    found = [_advance(model, state, prompt, steps[0])]
    astray = model.copy_state(state)
    _advance(model, astray, *torch.split(tokens_L[:3], 1))
    found.append(_advance(model, state, *steps[1:]))
    return disagreement(torch.cat(found), expected_LV, rounding)


def _in_chunks(
    model: SequentialHosted, tokens_L: Tensor, expected_LV: Tensor, rounding: Rounding
) -> str:
    """A prompt in pieces of several tokens; how it differs."""
    try:
        found = _advance(model, model.new_state(), *torch.split(tokens_L, 4))
    except Exception as error:  # the modelling code raises what it likes
        return f"{type(error).__name__}: {error}"
    return disagreement(found, expected_LV, rounding)


def _state_cost(model: SequentialHosted, tokens_L: Tensor) -> StateCost:
    """Bytes of states of two lengths, as a line that is never below either."""
    sizes = []
    for length in (8, 16):
        state = model.new_state()
        model.advance(state, tokens_L[:length], FrozenLinears())
        sizes.append(num_bytes(state))
    per_token = max(0, -(-(sizes[1] - sizes[0]) // 8))
    return StateCost(max(sizes[0] - 8 * per_token, 0), per_token)
