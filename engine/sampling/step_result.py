"""What a step found, and what of it belongs to which piece."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .sample_step import Piece
from .sampler import Drawn
from .scoring import Scores


@dataclass(frozen=True, slots=True, eq=False)
class PieceResult:
    """What one piece drew and scored."""

    tokens: list[int]
    logprobs: list[float]
    top_tokens: np.ndarray  # [draws, k] int32, the likeliest tokens where each was drawn
    top_logprobs: np.ndarray  # [draws, k] float32
    scores: Scores | None  # None when it scores nothing
    is_finite: bool  # if not, its logits were not


@dataclass(frozen=True, slots=True, eq=False)
class StepResult:
    """What a step found; a step that raised has changed nothing that its repetition reads."""

    drawn: Drawn
    scores: Scores

    def deal(self, pieces: Sequence[Piece]) -> list[PieceResult]:
        """Give each piece its own, in the order in which the step had them."""
        drawn = self.drawn
        tokens, logprobs = drawn.tokens.tolist(), drawn.logprobs.tolist()
        is_finite = np.isfinite(drawn.logprobs).tolist()
        results: list[PieceResult] = []
        draw = entry = 0
        scored = self.scores.deal([piece.scoring for piece in pieces])
        for piece, scores in zip(pieces, scored, strict=True):
            num_draws, k = len(piece.streams), piece.top
            draws = slice(draw, draw + num_draws)
            entries = slice(entry, entry + num_draws * k)
            draw, entry = draws.stop, entries.stop
            top_logprobs = drawn.top_logprobs[entries].reshape(num_draws, k)
            results.append(
                PieceResult(
                    tokens[draws],
                    logprobs[draws],
                    drawn.top_tokens[entries].reshape(num_draws, k),
                    top_logprobs,
                    scores,
                    all(is_finite[draws])
                    and (not k or bool(np.isfinite(top_logprobs).all()))
                    and (scores is None or scores.is_finite),
                )
            )
        return results
