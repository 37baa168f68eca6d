"""Logits to tokens, for many sequences that each have their own settings and random stream.

N sequences, M those of one kind, V vocabulary, C candidates, B probabilities of a block.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_GAMMA = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
_BLOCK = 128  # a divisor of most vocabularies
_FIRST_CANDIDATES = 64


def stream_of(seed: int, sample: int) -> int:
    """Return the state in which the random stream of one sample of one request starts."""
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
        temperature, top_k, top_p = zip(*rows, strict=True)
        return cls(
            np.array(temperature, np.float64),
            np.array(top_k, np.int64),
            np.array(top_p, np.float64),
        )

    def part(self, rows: slice) -> "Settings":
        """The settings of some of the sequences."""
        return Settings(self.temperature[rows], self.top_k[rows], self.top_p[rows])


@dataclass(frozen=True, slots=True)
class Drawn:
    """One token a sequence; a logprob that is not finite tells that the logits were not."""

    tokens: np.ndarray  # [N] int64
    logprobs: np.ndarray  # [N] float32


def draw(logits_NV: Tensor, settings: Settings, uniforms_N: np.ndarray) -> Drawn:
    """Draw the next token of every sequence.

    The distribution is softmax(logits / temperature), cut to the top_k likeliest tokens and then to
    the fewest of them whose share reaches top_p; tokens as likely as the last one kept stay. The
    logprob is that of the tempered distribution before the cut; temperature 0 takes the likeliest
    token, with the logprob of temperature 1.

    Args:
        logits_NV: float32, [N, V]; scaled in place.
        settings: of the N sequences.
        uniforms_N: float64 in [0, 1), one a sequence; the inverse of the cumulated distribution is
            taken there, in the order of the vocabulary.
    """
    device = logits_NV.device
    is_greedy = settings.temperature == 0
    temperature = np.where(is_greedy, 1.0, settings.temperature)
    if (temperature != 1).any():
        logits_NV.div_(torch.from_numpy(temperature.astype(np.float32)).to(device)[:, None])
    logprobs_NV = torch.log_softmax(logits_NV, -1)
    is_cut = ~is_greedy & ((settings.top_k > 0) | (settings.top_p < 1))
    tokens_N = torch.empty(len(is_greedy), dtype=torch.int64, device=device)
    for kind, chosen in (("greedy", is_greedy), ("plain", ~is_greedy & ~is_cut), ("cut", is_cut)):
        rows = np.flatnonzero(chosen)
        if not len(rows):
            continue
        index = torch.from_numpy(rows).to(device)
        logprobs_MV = logprobs_NV if len(rows) == len(chosen) else logprobs_NV[index]
        if kind == "greedy":
            tokens_N[index] = logprobs_MV.argmax(-1)
            continue
        targets_M = torch.from_numpy(uniforms_N[rows]).to(device)
        lowest_M = None
        if kind == "cut":
            lowest_M = _lowest_kept(logprobs_MV, settings.top_k[rows], settings.top_p[rows])
        tokens_N[index] = _invert(logprobs_MV, lowest_M, targets_M)
    logprobs_N = logprobs_NV.gather(1, tokens_N[:, None])[:, 0]
    return Drawn(tokens_N.cpu().numpy(), logprobs_N.cpu().numpy())


def _invert(logprobs_MV: Tensor, lowest_M: Tensor | None, uniforms_M: Tensor) -> Tensor:
    """Return the first token at which the cumulated probability exceeds the uniform's share.

    Two levels, so that only block sums and one block a row are cumulated in float64.
    """
    M, V = logprobs_MV.shape
    num_blocks = -(-V // _BLOCK)
    p_MV = logprobs_MV.new_zeros(M, num_blocks * _BLOCK)
    torch.exp(logprobs_MV, out=p_MV[:, :V])
    if lowest_M is not None:
        p_MV[:, :V].masked_fill_(logprobs_MV < lowest_M[:, None], 0.0)
    p_MCB = p_MV.view(M, num_blocks, _BLOCK)
    ends_MC = p_MCB.sum(-1).double().cumsum(-1)
    targets_M = uniforms_M * ends_MC[:, -1]
    block_M = _first_above(ends_MC, targets_M)
    rows = torch.arange(M, device=p_MV.device)
    before_M = torch.where(block_M > 0, ends_MC[rows, block_M - 1], 0.0)
    inside_M = _first_above(p_MCB[rows, block_M].double().cumsum(-1), targets_M - before_M)
    return (block_M * _BLOCK + inside_M).clamp_(max=V - 1)


def _first_above(ends_MC: Tensor, targets_M: Tensor) -> Tensor:
    """Return the first entry above the target, at most the one that reaches the total.

    Either entry adds something, so that nothing of probability zero is ever chosen.
    """
    first_M = (ends_MC <= targets_M[:, None]).sum(-1)
    return torch.minimum(first_M, (ends_MC < ends_MC[:, -1:]).sum(-1))


def _lowest_kept(logprobs_MV: Tensor, top_k: np.ndarray, top_p: np.ndarray) -> Tensor:
    """Return the logprob of the least likely token that top_k and top_p keep, for each row.

    Only as many candidates are sorted as are needed to reach every row's share.
    """
    V = logprobs_MV.shape[1]
    top_k = np.where(top_k > 0, np.minimum(top_k, V), V)
    limited = top_k[top_k < V]
    num_candidates = max(_FIRST_CANDIDATES, int(limited.max(initial=1)))
    k_M1 = torch.from_numpy(top_k).to(logprobs_MV.device)[:, None]
    p_M1 = torch.from_numpy(top_p).to(logprobs_MV.device)[:, None]
    while True:
        num_candidates = min(num_candidates, V)
        values_MC = logprobs_MV.topk(num_candidates, -1).values
        ranks_C = torch.arange(num_candidates, device=values_MC.device)
        mass_MC = values_MC.double().exp().masked_fill_(ranks_C >= k_M1, 0.0)
        ends_MC = mass_MC.cumsum(-1)
        total_M1 = torch.where(k_M1 < V, ends_MC[:, -1:], 1.0)
        is_kept = (ends_MC - mass_MC < p_M1 * total_M1) & (ranks_C < k_M1)
        is_short = is_kept[:, -1:] & (k_M1 > num_candidates)
        if num_candidates == V or not bool(is_short.any()):
            return values_MC.gather(1, (is_kept.sum(-1, keepdim=True) - 1).clamp_(min=0))[:, 0]
        num_candidates *= 8


def _mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)
