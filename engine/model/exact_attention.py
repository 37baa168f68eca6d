"""Attention on a CPU whose rows have bits of their own: in training, prefill and decode alike.

Which other queries, keys or sequences are computed beside a query changes none of its bits. That
rests on these facts (x86-64, PyTorch 2.13 with MKL 2024.2 and oneDNN, 1 to 3 threads), which the
tests check:

- rows and columns of a batched product that come in sixteens, of at least two matrices, have the
  same bits at any number of them and at any place;
- up to `KEYS` terms are summed in their order, so that those which are zero, from some key on,
  change nothing;
- nor do they change softmax, where a row is a multiple of 16 long.

N sequences, G key and value heads, R query heads each, H = G * R; Q query tokens, L keys, K head
width. C = N * G key heads, each with its M = Q * R query rows, token by token.
"""

import numpy as np
import torch
from torch import Tensor

ROWS = 16  # rows and keys come in multiples of it
KEYS = 128  # whose values are mixed by one product; from key 0 on, the products are added in order
_QUERIES = 128  # query tokens whose scores are in memory at a time


def padded(count: int) -> int:
    """The next multiple of `ROWS`."""
    return -(-count // ROWS) * ROWS


def product(a_CXY: Tensor, b_CYZ: Tensor) -> Tensor:
    """Return a @ b, whose bits do not depend on C either: threads would share a single one."""
    if a_CXY.shape[0] > 1:
        return torch.bmm(a_CXY, b_CYZ)
    return torch.bmm(a_CXY.expand(2, -1, -1), b_CYZ.expand(2, -1, -1))[:1]


def mix(weights_CML: Tensor, v_CLK: Tensor) -> Tensor:
    """Return weights @ v, summed over `KEYS` keys at a time; between them in float32."""
    mixed: Tensor | None = None
    for start in range(0, v_CLK.shape[1], KEYS):
        keys = slice(start, start + KEYS)
        part_CMK = product(weights_CML[:, :, keys], v_CLK[:, keys])
        mixed = part_CMK if mixed is None else mixed.float().add_(part_CMK)
    assert mixed is not None
    return mixed.to(v_CLK.dtype)


def attend_exactly(
    q_NQHK: Tensor, k_NGLK: Tensor, v_NGLK: Tensor, last_NQ: np.ndarray, is_later_NQL: Tensor
) -> Tensor:
    """Return softmax(K ** -0.5 q k^T) v, [N, Q, H, K], without gradient.

    Args:
        k_NGLK: L is a multiple of `ROWS`; keys that nobody sees are finite.
        last_NQ: the last key each query sees.
        is_later_NQL: the keys it does not see.
    """
    (N, Q, H, K), (G, L) = q_NQHK.shape, k_NGLK.shape[1:3]
    R = H // G
    q_CQRK = q_NQHK.view(N, Q, G, R, K).transpose(1, 2).reshape(N * G, Q, R, K)
    k_CLK, v_CLK = k_NGLK.reshape(N * G, L, K), v_NGLK.reshape(N * G, L, K)
    out_NQHK = torch.empty_like(q_NQHK, memory_format=torch.contiguous_format)
    for start in range(0, Q, _QUERIES):
        stop = min(start + _QUERIES, Q)
        seen, num_rows = padded(int(last_NQ[:, start:stop].max()) + 1), (stop - start) * R
        rows_CMK = q_CQRK.new_zeros(N * G, padded(num_rows), K)
        rows_CMK[:, :num_rows] = q_CQRK[:, start:stop].flatten(1, 2)
        scores_CML = product(rows_CMK, k_CLK[:, :seen].transpose(1, 2)).mul_(K**-0.5)
        own_NGBRL = _split(scores_CML[:, :num_rows], N, R)
        own_NGBRL.masked_fill_(is_later_NQL[:, None, start:stop, None, :seen], float("-inf"))
        mixed_CMK = mix(torch.softmax(scores_CML, -1), v_CLK[:, :seen])
        mixed_NGBRK = _split(mixed_CMK[:, :num_rows], N, R)
        out_NQHK[:, start:stop].view(N, stop - start, G, R, K).copy_(mixed_NGBRK.transpose(1, 2))
    return out_NQHK


def _split(x_CMK: Tensor, num_sequences: int, repeats: int) -> Tensor:
    """The same memory as [N, G, tokens, R, K]."""
    x_CBRK = torch.unflatten(x_CMK, 1, (-1, repeats))
    return torch.unflatten(x_CBRK, 0, (num_sequences, -1))
