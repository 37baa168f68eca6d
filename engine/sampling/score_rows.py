"""Score tokens, find the likeliest and draw alternatives after rows of prompts, from their logits.

R rows, V vocabulary, N rows of one kind, K likeliest tokens, P pairs of a row and a token.
"""

import numpy as np
import torch
from torch import Tensor

from ...kernels.head import logprobs, pair_logprobs_
from ..model.uploads import upload
from .sampler import RowBounds, draw_several, uniforms
from .scoring import Scores, Scoring
from .top_tokens import pick_entries, top_tokens


def score_rows(logits_RV: Tensor, scoring: Scoring, row_bounds: RowBounds | None = None) -> Scores:
    """Find what is wanted of R rows.

    Args:
        logits_RV: float32, of the wanted rows; overwritten.
        scoring: what is wanted of them.
        row_bounds: as for `draw`.
    """
    top_rows_N, top_NK = _find_top(logits_RV, scoring)
    alternatives_A = _draw_alternatives(logits_RV, scoring)
    rows = (
        np.repeat(np.arange(scoring.num_rows), scoring.cells_R),
        np.repeat(top_rows_N, top_NK.shape[1]),
        scoring.alternative_rows(),
    )
    tokens_P = torch.cat((_like(logits_RV, scoring.tokens_C), top_NK.flatten(), alternatives_A))
    rows_P = _like(logits_RV, np.concatenate(rows))
    logprobs_P = _logprobs_(logits_RV, rows_P, tokens_P, row_bounds).cpu().numpy()
    ends = np.cumsum([len(part) for part in rows])
    cells_C, of_top, of_alternatives = np.split(logprobs_P, ends[:-1])
    top = top_NK.cpu().numpy()
    wanted_N = scoring.top_R[top_rows_N]
    entries = pick_entries(top, of_top.reshape(top.shape), wanted_N)
    return Scores(cells_C, *entries, alternatives_A.cpu().numpy().astype(np.int32), of_alternatives)


def _logprobs_(
    logits_RV: Tensor, rows_P: Tensor, tokens_P: Tensor, row_bounds: RowBounds | None
) -> Tensor:
    if row_bounds is None:
        return pair_logprobs_(logits_RV, rows_P, tokens_P)
    top_R, peak_R = row_bounds(logits_RV)
    bounds_P = top_R.index_select(0, rows_P), peak_R.index_select(0, rows_P)
    return logprobs(logits_RV[rows_P, tokens_P], *bounds_P)


def _find_top(logits_RV: Tensor, scoring: Scoring) -> tuple[np.ndarray, Tensor]:
    """The rows that the likeliest tokens are wanted of, [N], and these tokens, [N, K]."""
    rows_N = np.flatnonzero(scoring.top_R)
    if not len(rows_N):
        return rows_N, torch.empty((0, 0), dtype=torch.int64, device=logits_RV.device)
    chosen_NV = _select(logits_RV, rows_N)
    return rows_N, top_tokens(chosen_NV, int(scoring.top_R.max()))


def _draw_alternatives(logits_RV: Tensor, scoring: Scoring) -> Tensor:
    """The alternatives of all rows, [A]."""
    rows_N = np.flatnonzero(scoring.alternatives_R)
    if not len(rows_N):
        return torch.empty(0, dtype=torch.int64, device=logits_RV.device)
    return draw_several(
        _select(logits_RV, rows_N),
        scoring.temperature_R[rows_N],
        scoring.alternatives_R[rows_N],
        uniforms(*scoring.alternative_places()),
    )


def _select(logits_RV: Tensor, rows_N: np.ndarray) -> Tensor:
    if len(rows_N) == len(logits_RV):
        return logits_RV
    return logits_RV.index_select(0, _like(logits_RV, rows_N))


def _like(tensor: Tensor, values: np.ndarray) -> Tensor:
    return upload(values, tensor.device)
