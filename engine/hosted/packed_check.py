"""Whether a module's own code can run packed batches; everything is tried, nothing believed.

T rows, H query heads, G key heads, K head width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..model.attention import PackedAttention
from ..model.attention_form import AttentionForm, attend_formed
from ..model.layers import capped
from ..model.linear import FrozenLinears
from . import attention as weft_attention
from .facts import HostedFacts
from .masks import Masks, Unpackable
from .model import PackedModel, Parts, takes_positions
from .probes import WatchingLinears, reached_rows
from .reference import Reference
from .rounding import Rounding, disagreement


def try_packing(
    parts: Parts, reference: Reference, probes: Sequence[Tensor]
) -> tuple[PackedModel, set[int]]:
    """Let the module use our attention and check it on the probes.

    Returns:
        The model, and the sites that the output depends on.

    Raises:
        Unpackable: why it cannot be packed; its own attention is back in place then.
    """
    module = parts.module
    own = module.config._attn_implementation
    try:
        return _try(parts, reference, probes)
    except Unpackable:
        module.set_attn_implementation(own)
        raise
    except Exception as error:  # the modelling code raises what it likes
        module.set_attn_implementation(own)
        raise Unpackable(f"{type(error).__name__}: {error}") from error


def _try(
    parts: Parts, reference: Reference, probes: Sequence[Tensor]
) -> tuple[PackedModel, set[int]]:
    module = parts.module
    if getattr(module, "_is_stateful", False):
        raise Unpackable("it carries a state from token to token")
    if not takes_positions(module):
        raise Unpackable("it takes no positions")
    module.set_attn_implementation(weft_attention.NAME)
    masks = Masks(parts.facts.max_context)
    shapes = _Shapes()
    for tokens in probes:
        shapes.attention = PackedAttention([0, len(tokens)], tokens.device)
        _forward(PackedModel(parts, masks), [tokens], shapes, FrozenLinears())
    masks.is_learning = False
    parts.facts = shapes.complete(parts.facts)
    model = PackedModel(parts, masks)
    _check_logits(model, reference, probes)
    _check_isolation(model, probes, reference.rounding)
    _check_continuation(model, reference, probes)
    return model, _reached_sites(model, probes)


class _Shapes:
    """Notes the heads of every layer that attends."""

    def __init__(self) -> None:
        self.attention: Any = None
        self._heads: dict[int, tuple[int, int]] = {}

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, form: AttentionForm | None = None
    ) -> Tensor:
        self._heads[layer] = (k.shape[1], max(q.shape[2], v.shape[2]))
        out: Tensor = self.attention.attend(layer, q, k, v, form)
        return out

    def complete(self, facts: HostedFacts) -> HostedFacts:
        """The facts with what the pages of a cache are sized by."""
        if not self._heads:
            raise Unpackable("it does not call its attention through transformers' interface")
        if len(kv_heads := {heads for heads, _ in self._heads.values()}) > 1:
            raise Unpackable(f"its layers have {sorted(kv_heads)} key heads")
        return replace(
            facts,
            num_layers=max(self._heads) + 1,
            num_kv_heads=kv_heads.pop(),
            head_dim=max(width for _, width in self._heads.values()),
        )


def _forward(
    model: PackedModel, sequences: Sequence[Tensor], attention: Any, linears: Any
) -> Tensor:
    positions = [torch.arange(len(tokens), device=tokens.device) for tokens in sequences]
    hidden_TD: Tensor = model.forward(
        torch.cat(list(sequences)), torch.cat(positions), attention, linears
    )
    return hidden_TD


def _packed(sequences: Sequence[Tensor]) -> PackedAttention:
    bounds = [0]
    for tokens in sequences:
        bounds.append(bounds[-1] + len(tokens))
    return PackedAttention(bounds, sequences[0].device)


@torch.no_grad()
def _logits(
    model: PackedModel, sequences: Sequence[Tensor], attention: Any, linears: Any = None
) -> Tensor:
    hidden_TD = _forward(model, sequences, attention, linears or FrozenLinears())
    return capped(model.head.forward(hidden_TD), model.logit_softcap)


def _check_logits(model: PackedModel, reference: Reference, probes: Sequence[Tensor]) -> None:
    found = _logits(model, probes, _packed(probes))
    if difference := disagreement(found, torch.cat(reference.logits), reference.rounding):
        raise Unpackable(f"packed {difference}")


def _check_isolation(model: PackedModel, probes: Sequence[Tensor], rounding: Rounding) -> None:
    """The last sequence must not feel the others: their tokens, their lengths, their NaN."""
    first, last = probes
    alone = _logits(model, [last], _packed([last]))
    for other in (first.flip(0), first[:5], torch.cat([first, first])):
        beside = _logits(model, [other, last], _packed([other, last]))
        if difference := disagreement(beside[len(other) :], alone, rounding):
            raise Unpackable(f"beside another sequence {difference}")
    poison = WatchingLinears(poisoned=slice(0, len(first)))
    beside = _logits(model, probes, _packed(probes), poison)
    if difference := disagreement(beside[len(first) :], alone, rounding):
        raise Unpackable(f"beside a sequence of NaN {difference}")


def _check_continuation(model: PackedModel, reference: Reference, probes: Sequence[Tensor]) -> None:
    """Sequences that go on from kept keys, two pieces and then one token each."""
    kept = _KeptKeys(len(probes))
    for first, last in ((None, 6), (6, -1), (-1, None)):
        pieces = [tokens[first:last] for tokens in probes]
        found = _go_on(model, pieces, kept)
    expected = torch.cat([logits[-1:] for logits in reference.logits])
    if difference := disagreement(found, expected, reference.rounding):
        raise Unpackable(f"token by token {difference}")


@torch.no_grad()
def _go_on(model: PackedModel, pieces: Sequence[Tensor], kept: "_KeptKeys") -> Tensor:
    positions = kept.begin([len(piece) for piece in pieces])
    tokens_T = torch.cat(list(pieces))
    hidden_TD = model.forward(tokens_T, positions.to(tokens_T.device), kept, FrozenLinears())
    return capped(model.head.forward(hidden_TD), model.logit_softcap)


class _KeptKeys:
    """Attention that keeps every sequence's keys, in the plainest way."""

    def __init__(self, num_sequences: int) -> None:
        self._cached = [0] * num_sequences
        self._fresh = [0] * num_sequences
        self._keys: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def begin(self, fresh: Sequence[int]) -> Tensor:
        """Let the next pass bring so many tokens a sequence; returns their positions."""
        self._cached = [old + new for old, new in zip(self._cached, self._fresh, strict=True)]
        self._fresh = list(fresh)
        pairs = zip(self._cached, fresh, strict=True)
        return torch.cat([torch.arange(old, old + new) for old, new in pairs])

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, form: AttentionForm | None = None
    ) -> Tensor:
        form = form or AttentionForm(q.shape[2] ** -0.5)
        outputs, start = [], 0
        for sequence, (old, new) in enumerate(zip(self._cached, self._fresh, strict=True)):
            rows, place = slice(start, start + new), (layer, sequence)
            keys, values = k[rows], v[rows]
            if place in self._keys:
                keys = torch.cat([self._keys[place][0], keys])
                values = torch.cat([self._keys[place][1], values])
            self._keys[place] = keys, values
            (H, K), G = q.shape[1:], k.shape[1]
            q_GMK = q[rows].view(new, G, H // G, K).transpose(0, 1).reshape(G, -1, K)
            last = torch.arange(old, old + new, device=q.device)[None]
            out = attend_formed(q_GMK, keys.transpose(0, 1), values.transpose(0, 1), last, form)
            outputs.append(out.view(G, new, H // G, K).transpose(0, 1).reshape(new, H, K))
            start += new
        return torch.cat(outputs)


def _reached_sites(model: PackedModel, probes: Sequence[Tensor]) -> set[int]:
    """Sites that the first sequence's output depends on; it must not depend on later rows."""
    watch = WatchingLinears()
    hidden_TD = _forward(model, probes, _packed(probes), watch)
    length = len(probes[0])
    for num_rows in (length // 2, length):
        reached = reached_rows(watch, hidden_TD, num_rows)
        for site, reached_T in reached.items():
            if reached_T[num_rows:].any():
                name = model.sites[site].name
                raise Unpackable(f"later rows of {name} reach the output of {num_rows} rows")
    return {site for site, reached_T in reached.items() if reached_T.any()}
