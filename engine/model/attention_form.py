"""Attention that is not the plain causal softmax: windows, capped scores, sinks.

Spelled out with explicit scores and masks, a block of queries at a time. Layout as in `causal`:
C key heads, M = Q * R query rows, token by token, of Q query tokens and R query heads a key head,
L keys, K head width; H query heads of the model.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

_BLOCK = 128  # query tokens whose scores are in memory at a time
_MAX_KEPT = 256  # keys; with more, scores are computed again for backward


@dataclass(frozen=True, slots=True, eq=False)
class AttentionForm:
    """How one layer turns scores into weights."""

    scale: float  # of q k^T
    window: int = 0  # how many keys a query sees, its own included; 0 is all before it
    softcap: float = 0.0  # scores are bent to softcap * tanh(score / softcap); 0 is off
    sinks_H: Tensor | None = None  # a score per head that takes weight and gives no value

    def is_plain(self, num_keys: int) -> bool:
        """Whether, but for the scale, it is the plain causal softmax over so many keys."""
        has_window = 0 < self.window < num_keys
        return not has_window and not self.softcap and self.sinks_H is None

    def scaled(self, q: Tensor) -> Tensor:
        """Queries that give these scores at the plain scale, K ** -0.5."""
        factor = self.scale * q.shape[-1] ** 0.5
        return q if abs(factor - 1) < 1e-12 else q * factor


def attend_formed(
    q_CMK: Tensor, k_CLK: Tensor, v_CLK: Tensor, last_CQ: Tensor, form: AttentionForm
) -> Tensor:
    """Return the mixed values, [C, M, K]; differentiable in q, k and v.

    Args:
        last_CQ: index of the last key each query token sees, its own; [C, Q] or [1, Q].
    """
    num_queries = last_CQ.shape[1]
    repeats = q_CMK.shape[1] // num_queries
    needs_gradient = torch.is_grad_enabled() and q_CMK.requires_grad
    parts = []
    for start in range(0, num_queries, _BLOCK):
        q_CBK = q_CMK[:, start * repeats : (start + _BLOCK) * repeats]
        last_CB = last_CQ[:, start : start + _BLOCK].repeat_interleave(repeats, 1)
        if needs_gradient and k_CLK.shape[1] > _MAX_KEPT:
            part = checkpoint(
                _attend_block,
                *(q_CBK, k_CLK, v_CLK, last_CB, repeats, form),
                use_reentrant=False,
                preserve_rng_state=False,
                determinism_check="none",
            )
        else:
            part = _attend_block(q_CBK, k_CLK, v_CLK, last_CB, repeats, form)
        parts.append(part)
    return torch.cat(parts, 1)


def _attend_block(
    q_CBK: Tensor, k_CLK: Tensor, v_CLK: Tensor, last_CB: Tensor, repeats: int, form: AttentionForm
) -> Tensor:
    scores_CBL = torch.bmm(q_CBK, k_CLK.transpose(1, 2)).float() * form.scale
    if form.softcap:
        scores_CBL = torch.tanh(scores_CBL / form.softcap) * form.softcap
    keys_L, last_CB1 = torch.arange(k_CLK.shape[1], device=k_CLK.device), last_CB[..., None]
    is_hidden = keys_L > last_CB1
    if form.window:
        is_hidden = is_hidden | (keys_L <= last_CB1 - form.window)
    scores_CBL = scores_CBL.masked_fill(is_hidden, float("-inf"))
    if form.sinks_H is None:
        weights_CBL = torch.softmax(scores_CBL, -1)
    else:
        # Key heads come in whole sets, a set a sequence; their query heads take turns in the rows.
        num_heads, (num_keys, num_rows) = len(form.sinks_H), q_CBK.shape[:2]
        sinks_CR = form.sinks_H.float().view(-1, repeats).repeat(num_keys * repeats // num_heads, 1)
        sinks_CB1 = sinks_CR.repeat(1, num_rows // repeats)[..., None]
        weights_CBL = torch.softmax(torch.cat([scores_CBL, sinks_CB1], -1), -1)[..., :-1]
    return torch.bmm(weights_CBL.to(v_CLK.dtype), v_CLK)
