"""The likeliest tokens of distributions, in an order that depends on each row's logits alone.

N rows, K tokens, V vocabulary, E entries that were asked for, row after row.
"""

import numpy as np
from torch import Tensor

from ...client.sample_results import PAD_LOGPROB


def top_tokens(logits_NV: Tensor, k: int) -> Tensor:
    """Return the tokens with the largest logits of each row, the largest first, [N, min(k, V)].

    Equal logits, which 16-bit models often have, go by token id, so that neither the algorithm
    behind `topk` nor the other rows nor a larger k change what a row has.
    """
    values_NK, tokens_NK = logits_NV.topk(min(k, logits_NV.shape[1]), -1)
    lowest_N1 = values_NK[:, -1:]
    has_more_N = (logits_NV == lowest_N1).sum(-1) > (values_NK == lowest_N1).sum(-1)
    if bool(has_more_N.any()):
        rows = has_more_N.nonzero()[:, 0]
        tokens_NK[rows] = _lowest_ids(logits_NV[rows], lowest_N1[rows], tokens_NK.shape[1])
    tokens_NK = tokens_NK.sort(-1).values
    order_NK = logits_NV.gather(1, tokens_NK).sort(dim=-1, descending=True, stable=True).indices
    return tokens_NK.gather(1, order_NK)


def _lowest_ids(logits_NV: Tensor, lowest_N1: Tensor, k: int) -> Tensor:
    """The k largest, of those as large as the last one kept the lowest ids."""
    is_last_NV = logits_NV == lowest_N1
    is_above_NV = ~(is_last_NV | (logits_NV < lowest_N1))  # what is no number counts as large
    room_N1 = k - is_above_NV.sum(-1, keepdim=True)
    is_kept_NV = is_above_NV | (is_last_NV & (is_last_NV.cumsum(-1) <= room_N1))
    return is_kept_NV.nonzero()[:, 1].view(-1, k)


def pick_entries(
    tokens_NK: np.ndarray, logprobs_NK: np.ndarray, counts_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The first tokens of each row, as many as it asked for, and their log-probabilities.

    Returns:
        int32 and float32, [E]. A token that there is not, or that has no probability, is padding:
        id 0 and log-probability -99999.0.
    """
    missing = max(0, int(counts_N.max(initial=0)) - tokens_NK.shape[1])
    tokens_NK = np.pad(tokens_NK, ((0, 0), (0, missing)))
    logprobs_NK = np.pad(logprobs_NK, ((0, 0), (0, missing)), constant_values=-np.inf)
    is_picked_NK = np.arange(tokens_NK.shape[1]) < counts_N[:, None]
    tokens_E, logprobs_E = tokens_NK[is_picked_NK], logprobs_NK[is_picked_NK]
    is_token_E = logprobs_E != -np.inf
    return (
        np.where(is_token_E, tokens_E, 0).astype(np.int32),
        np.where(is_token_E, logprobs_E, PAD_LOGPROB).astype(np.float32),
    )
