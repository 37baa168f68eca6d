"""Logits to tokens, for many sequences that each have their own settings and random stream.

N sequences, M those of one kind, V vocabulary, C candidates, or blocks of B probabilities, A draws of
sequences that draw several, K and E as in `top_tokens`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels.head import logit_bounds, logprobs
from ..model.uploads import upload
from .top_tokens import pick_entries, top_tokens

RowBounds = Callable[[Tensor], tuple[Tensor, Tensor]]

ALTERNATIVES = -2  # in place of a sample's index: the stream of a prompt's alternatives
_GAMMA = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
_BLOCK = 128  # a divisor of most vocabularies
_DRAWS = 512  # draws whose block sums are held at a time
_CANDIDATES = 64  # tokens that are sorted for top_p; most shares are reached within them
_HALF_BITS = 15  # of the 30 bits in which floats of [0, 1] differ


def stream_of(seed: int, sample: int) -> int:
    """Return the state in which the random stream of one sample of one request starts.

    `sample` may be `ALTERNATIVES`.
    """
    return _mix(_mix(seed & _MASK) + (sample + 1) * _GAMMA & _MASK)


def uniforms(streams: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Return number `positions` of each stream, float64 in [0, 1).

    A stream is a counter, so a step that is repeated, alone or in other company, draws the same.

    Args:
        streams: states by `stream_of`, uint64.
        positions: index of the draw, integers, the same shape.

    Source: SplitMix64, Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators",
    OOPSLA 2014.
    """
    z = streams + (positions.astype(np.uint64) + np.uint64(1)) * np.uint64(_GAMMA)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    numbers: np.ndarray = (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return numbers


@dataclass(frozen=True, slots=True)
class Settings:
    """How each of N sequences draws; arrays of length N."""

    temperature: np.ndarray  # float64; 0 takes the likeliest token
    top_k: np.ndarray  # int64; -1 is off
    top_p: np.ndarray  # float64 in (0, 1]; 1 is off

    @classmethod
    def of(cls, rows: Sequence[tuple[float, int, float]]) -> "Settings":
        """Build from (temperature, top_k, top_p) of each sequence."""
        return cls(
            np.array([temperature for temperature, _, _ in rows], np.float64),
            np.array([top_k for _, top_k, _ in rows], np.int64),
            np.array([top_p for _, _, top_p in rows], np.float64),
        )

    def part(self, rows: slice) -> "Settings":
        """The settings of some of the sequences."""
        return Settings(self.temperature[rows], self.top_k[rows], self.top_p[rows])


@dataclass(frozen=True, slots=True)
class Drawn:
    """One token a sequence; a logprob that is not finite tells that the logits were not."""

    tokens: np.ndarray  # [N] int64
    logprobs: np.ndarray  # [N] float32
    top_tokens: np.ndarray  # [E] int32
    top_logprobs: np.ndarray  # [E] float32

    @classmethod
    def join(cls, parts: Sequence["Drawn"]) -> "Drawn":
        """One after the other; of no parts there is nothing."""
        floats, ints = np.empty(0, np.float32), np.empty(0, np.int32)
        return cls(
            np.concatenate([np.empty(0, np.int64), *(part.tokens for part in parts)]),
            np.concatenate([floats, *(part.logprobs for part in parts)]),
            np.concatenate([ints, *(part.top_tokens for part in parts)]),
            np.concatenate([floats, *(part.top_logprobs for part in parts)]),
        )


def draw(
    logits_NV: Tensor,
    settings: Settings,
    uniforms_N: np.ndarray,
    top_N: np.ndarray | None = None,
    row_bounds: RowBounds | None = None,
) -> Drawn:
    """Draw the next token of every sequence.

    The distribution is softmax(logits / temperature), cut to the top_k likeliest tokens and then to
    the fewest of them whose share reaches top_p; tokens as likely as the last one kept stay. The
    logprob is that of the tempered distribution before the cut; temperature 0 takes the likeliest
    token, with the logprob of temperature 1.

    Args:
        logits_NV: float32, [N, V]; divided by the temperatures afterwards.
        settings: of the N sequences.
        uniforms_N: float64 in [0, 1), one a sequence; the inverse of the cumulated distribution is
            taken there, in the order of the vocabulary.
        top_N: of the likeliest tokens of the tempered distribution, how many to report for each
            sequence; None reports none.
        row_bounds: what `logit_bounds` gives, in one pass; None takes that itself.
    """
    device = logits_NV.device
    is_greedy = settings.temperature == 0
    is_cut = ~is_greedy & ((settings.top_k > 0) | (settings.top_p < 1))
    temperature = np.where(is_greedy, 1.0, settings.temperature)
    if (temperature != 1).any():
        logits_NV.div_(upload(temperature.astype(np.float32), device)[:, None])
    tokens_N = torch.empty(len(is_greedy), dtype=torch.int64, device=device)
    if is_greedy.any():
        index, logits_MV = _select(logits_NV, is_greedy)
        tokens_N[index] = logits_MV.argmax(-1)
    top = _find_top(logits_NV, top_N)
    p_NV = torch.softmax(logits_NV, -1)
    for is_chosen in (~is_greedy & ~is_cut, is_cut):
        if not is_chosen.any():
            continue
        index, p_MV = _select(p_NV, is_chosen)
        if is_chosen is is_cut:
            lowest_M = _lowest_kept(p_MV, settings.top_k[is_cut], settings.top_p[is_cut])
            p_MV = p_MV.masked_fill(p_MV < lowest_M[:, None], 0.0)
        tokens_N[index] = _invert(p_MV, upload(uniforms_N[is_chosen], device))
    bounds_N = logit_bounds(logits_NV, p_NV) if row_bounds is None else row_bounds(logits_NV)
    logprobs_N = logprobs(logits_NV.gather(1, tokens_N[:, None])[:, 0], *bounds_N)
    return Drawn(tokens_N.cpu().numpy(), logprobs_N.cpu().numpy(), *_report_top(top, *bounds_N))


def draw_several(
    logits_NV: Tensor, temperature_N: np.ndarray, counts_N: np.ndarray, uniforms_A: np.ndarray
) -> Tensor:
    """Draw tokens, with replacement and with the temperature alone, any number for each row.

    Args:
        logits_NV: float32, [N, V]; stay as they are.
        temperature_N: float64; 0 takes the likeliest token.
        counts_N: draws of each row.
        uniforms_A: float64 in [0, 1), one a draw, row after row; used as by `draw`.

    Returns:
        int64, [A], on the device.
    """
    device = logits_NV.device
    is_greedy_N = temperature_N == 0
    divisor_N = np.where(is_greedy_N, 1.0, temperature_N).astype(np.float32)
    p_NV = logits_NV / upload(divisor_N, device)[:, None]
    torch.softmax(p_NV, -1, out=p_NV)
    rows_A = np.repeat(np.arange(len(counts_N)), counts_N)
    tokens_A = _invert(p_NV, upload(uniforms_A, device), upload(rows_A, device))
    if is_greedy_N.any():
        is_greedy_A = upload(is_greedy_N[rows_A], device)
        likeliest_A = logits_NV.argmax(-1)[upload(rows_A, device)]
        tokens_A = torch.where(is_greedy_A, likeliest_A, tokens_A)
    return tokens_A


@dataclass(frozen=True, slots=True)
class _Top:
    """The likeliest tokens of the rows that report some, with their tempered logits."""

    rows_M: Tensor
    tokens_MK: Tensor
    logits_MK: Tensor
    counts_M: np.ndarray


def _find_top(logits_NV: Tensor, top_N: np.ndarray | None) -> _Top | None:
    if top_N is None or not top_N.any():
        return None
    rows_M, logits_MV = _select(logits_NV, top_N > 0)
    tokens_MK = top_tokens(logits_MV, int(top_N.max()))
    return _Top(rows_M, tokens_MK, logits_MV.gather(1, tokens_MK), top_N[top_N > 0])


def _report_top(
    top: _Top | None, largest_N: Tensor, peak_N: Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Their ids and log-probabilities, those that drawn tokens would have."""
    if top is None:
        return np.empty(0, np.int32), np.empty(0, np.float32)
    largest_M1, peak_M1 = (x.index_select(0, top.rows_M)[:, None] for x in (largest_N, peak_N))
    logprobs_MK = logprobs(top.logits_MK, largest_M1, peak_M1)
    return pick_entries(top.tokens_MK.cpu().numpy(), logprobs_MK.cpu().numpy(), top.counts_M)


def _select(x_NV: Tensor, is_chosen: np.ndarray) -> tuple[Tensor, Tensor]:
    """The index of some rows and these rows, copied unless they are all."""
    index = upload(np.flatnonzero(is_chosen), x_NV.device)
    return index, x_NV if is_chosen.all() else x_NV.index_select(0, index)


def _invert(p_NV: Tensor, uniforms_A: Tensor, rows_A: Tensor | None = None) -> Tensor:
    """Return the first token at which the cumulated probability exceeds the uniform's share.

    Two levels, so that only block sums and one block a draw are cumulated in float64.

    Args:
        p_NV: need not sum up to 1.
        uniforms_A: one a draw.
        rows_A: row of each draw; None draws once from each.
    """
    N, V = p_NV.shape
    if V % _BLOCK:
        p_NV = F.pad(p_NV, (0, -V % _BLOCK))
    if rows_A is None:
        rows_A = torch.arange(N, device=p_NV.device)
    p_NCB = p_NV.view(N, -1, _BLOCK)
    ends_NC = p_NCB.sum(-1).double().cumsum(-1)
    parts = [slice(first, first + _DRAWS) for first in range(0, len(rows_A), _DRAWS)]
    tokens = [_find_tokens(p_NCB, ends_NC, rows_A[part], uniforms_A[part]) for part in parts]
    return torch.cat(tokens).clamp_(max=V - 1)


def _find_tokens(p_NCB: Tensor, ends_NC: Tensor, rows_A: Tensor, uniforms_A: Tensor) -> Tensor:
    """The token of each draw, found in the row's block sums and then in a block."""
    ends_AC = ends_NC.index_select(0, rows_A)
    targets_A = uniforms_A * ends_AC[:, -1]
    block_A = _first_above(ends_AC, targets_A)
    before_A = torch.where(block_A > 0, ends_NC[rows_A, block_A - 1], 0.0)
    inside_A = _first_above(p_NCB[rows_A, block_A].double().cumsum(-1), targets_A - before_A)
    return block_A * _BLOCK + inside_A


def _first_above(ends_AC: Tensor, targets_A: Tensor) -> Tensor:
    """Return the first entry above the target, at most the one that reaches the total.

    Either entry adds something, so that nothing of probability zero is ever chosen.
    """
    first_A = (ends_AC <= targets_A[:, None]).sum(-1)
    return torch.minimum(first_A, (ends_AC < ends_AC[:, -1:]).sum(-1))


def _lowest_kept(p_MV: Tensor, top_k: np.ndarray, top_p: np.ndarray) -> Tensor:
    """Return the probability of the least likely token that top_k and top_p keep, for each row."""
    V = p_MV.shape[1]
    top_k = np.where(top_k > 0, np.minimum(top_k, V), V)
    num_candidates = min(V, max(_CANDIDATES, int(top_k[top_k < V].max(initial=1))))
    k_M1 = upload(top_k, p_MV.device)[:, None]
    share_M1 = upload(top_p, p_MV.device)[:, None]
    values_MC = p_MV.topk(num_candidates, -1).values
    ranks_C = torch.arange(num_candidates, device=p_MV.device)
    mass_MC = values_MC.double().masked_fill_(ranks_C >= k_M1, 0.0)
    ends_MC = mass_MC.cumsum(-1)
    total_M1 = torch.where(k_M1 < V, ends_MC[:, -1:], 1.0)
    is_kept = (ends_MC - mass_MC < share_M1 * total_M1) & (ranks_C < k_M1)
    lowest_M = values_MC.gather(1, (is_kept.sum(-1, keepdim=True) - 1).clamp_(min=0))[:, 0]
    # By the same candidates whatever the others' top_k, so that no bit of a row depends on it.
    few = min(num_candidates, _CANDIDATES)
    is_wide_M = (ends_MC[:, few - 1 : few] < share_M1)[:, 0] & (k_M1 == V)[:, 0]
    if few < V and bool(is_wide_M.any()):
        wide = is_wide_M.nonzero()[:, 0]
        lowest_M[wide] = _reach(p_MV.index_select(0, wide), share_M1[wide])
    return lowest_M


def _reach(p_MV: Tensor, share_M1: Tensor) -> Tensor:
    """Return the largest bound such that the probabilities from it on sum up to the share.

    Without sorting: the bits of a float in [0, 1] order like the float, so two histograms find it,
    over the upper half of its bits and then over the lower half of those that agree.
    """
    bits_MV = p_MV.view(torch.int32)
    high_MV = bits_MV >> _HALF_BITS
    mass_MV = p_MV.double()
    high_M1, left_M1 = _reach_bin(high_MV, mass_MV, share_M1)
    mass_MV.masked_fill_(high_MV != high_M1, 0.0)
    low_M1, _ = _reach_bin(bits_MV & (1 << _HALF_BITS) - 1, mass_MV, left_M1)
    return (high_M1 << _HALF_BITS | low_M1).int().view(torch.float32)[:, 0]


def _reach_bin(bins_MV: Tensor, mass_MV: Tensor, share_M1: Tensor) -> tuple[Tensor, Tensor]:
    """Return the highest bin that, with all above it, has the share, and the share left for it."""
    sums_MB = mass_MV.new_zeros(len(bins_MV), 1 << _HALF_BITS)
    sums_MB.scatter_add_(1, bins_MV.long(), mass_MV)
    from_MB = sums_MB.flip(1).cumsum(1).flip(1)
    bin_M1 = ((from_MB >= share_M1).sum(1, keepdim=True) - 1).clamp_(min=0)
    return bin_M1, share_M1 - (from_MB - sums_MB).gather(1, bin_M1)


def _mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)
