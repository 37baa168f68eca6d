"""From what a request asks about its prompt to rows and back to arrays of the answer. Pure.

Row i of a prompt of P tokens predicts token i + 1, so there are P - 1 rows.
"""

import numpy as np

from .requests import SampleRequest
from .sampler import ALTERNATIVES, stream_of
from .scoring import Scores, Scoring


class PromptScoring:
    """What one request wants of its prompt's rows."""

    def __init__(self, request: SampleRequest) -> None:
        self._request = request
        num_rows = len(request.tokens) - 1
        last_n = request.prompt_logprobs_last_n or num_rows
        is_scored = np.arange(num_rows) >= num_rows - last_n
        wants_own = is_scored & request.prompt_logprobs
        cells, tokens, self._is_own_C = _cells(request, wants_own)
        self._own_rows = np.flatnonzero(wants_own)
        wanted = Scoring(
            rows_R=np.arange(num_rows),
            cells_R=cells,
            tokens_C=tokens,
            top_R=is_scored * request.topk_prompt_logprobs,
            alternatives_R=np.full(num_rows, request.prompt_alt_tokens_k, np.int64),
            temperature_R=np.full(num_rows, request.temperature, np.float64),
            streams_R=np.full(num_rows, stream_of(request.seed, ALTERNATIVES), np.uint64),
            positions_R=np.arange(num_rows),
        )
        self._wanted = wanted.without_idle_rows()

    def between(self, first: int, last: int) -> Scoring | None:
        """What is wanted of rows first .. last - 1, counted from `first`; None if nothing is."""
        return self._wanted.between(first, last)

    def arrays(self, scores: Scores) -> dict[str, np.ndarray]:
        """The arrays of the answer on the wire, from the scores of all rows."""
        request = self._request
        arrays: dict[str, np.ndarray] = {}
        if request.prompt_logprobs:
            logprobs = np.full(len(request.tokens), np.nan, np.float32)
            logprobs[self._own_rows + 1] = scores.logprobs_C[self._is_own_C]
            arrays["prompt_logprobs"] = logprobs
        if request.prompt_targets is not None:
            arrays["target_prompt_logprobs"] = scores.logprobs_C[~self._is_own_C]
        if k := request.topk_prompt_logprobs:
            arrays["topk_prompt_tokens"] = scores.top_tokens_E.reshape(-1, k)
            arrays["topk_prompt_logprobs"] = scores.top_logprobs_E.reshape(-1, k)
        if k := request.prompt_alt_tokens_k:
            arrays["prompt_alt_tokens"] = scores.alternatives_A.reshape(-1, k)
            arrays["prompt_alt_logprobs"] = scores.alternative_logprobs_A.reshape(-1, k)
        return arrays


def _cells(
    request: SampleRequest, wants_own: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cells of each row, their tokens, and which of them are the prompt's own, first in its row."""
    own, targets = wants_own.astype(np.int64), request.prompt_targets
    counts = own if targets is None else own + targets.counts
    tokens = np.empty(int(counts.sum()), np.int64)
    is_own = np.zeros(len(tokens), bool)
    is_own[(np.cumsum(counts) - counts)[wants_own]] = True
    tokens[is_own] = request.tokens[1:][wants_own]
    if targets is not None:
        tokens[~is_own] = targets.tokens
    return counts, tokens, is_own
