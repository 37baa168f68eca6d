"""Log-probabilities of draws and scores by the Triton kernel."""

import interpreter
import numpy as np
import pytest
import torch

from weft.engine.sampling.sampler import ALTERNATIVES, Settings, draw, stream_of
from weft.engine.sampling.score_rows import score_rows
from weft.engine.sampling.scoring import Scoring
from weft.kernels.gpu.head import row_bounds, rows_logprobs


@pytest.fixture
def logits_NV() -> torch.Tensor:
    values = 4 * torch.randn(6, 500, generator=torch.Generator().manual_seed(0))
    return values.bfloat16().to(interpreter.kernel_device())


def test_draws_are_the_same_and_so_are_their_logprobs(logits_NV: torch.Tensor) -> None:
    settings = Settings.of([(1.0, -1, 1.0), (0.0, -1, 1.0), (0.7, 5, 1.0)] * 2)
    uniforms_N, top_N = np.linspace(0, 0.99, 6), np.array([0, 3, 2, 0, 1, 5])
    plain, ours = (
        draw(logits_NV.float(), settings, uniforms_N, top_N, bounds)
        for bounds in (None, row_bounds)
    )
    assert plain.tokens.tolist() == ours.tokens.tolist()
    assert plain.top_tokens.tolist() == ours.top_tokens.tolist()
    np.testing.assert_allclose(ours.logprobs, plain.logprobs, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(ours.top_logprobs, plain.top_logprobs, rtol=1e-6, atol=1e-6)


def test_tokens_drawn_at_temperature_1_have_the_logprobs_of_training(
    logits_NV: torch.Tensor,
) -> None:
    settings = Settings.of([(1.0, -1, 1.0)] * 6)
    drawn = draw(logits_NV.float(), settings, np.linspace(0, 0.99, 6), None, row_bounds)
    targets_N = torch.from_numpy(drawn.tokens).to(logits_NV.device)
    logprobs_N, _ = rows_logprobs(logits_NV, targets_N)
    assert drawn.logprobs.tolist() == logprobs_N.tolist()


def test_scored_tokens_likeliest_and_alternatives_have_the_logprobs_of_training(
    logits_NV: torch.Tensor,
) -> None:
    wanted = Scoring(
        rows_R=np.arange(6),
        cells_R=np.array([1, 0, 3, 0, 0, 1]),
        tokens_C=np.array([7, 1, 2, 3, 499]),
        top_R=np.array([0, 5, 2, 0, 0, 1]),
        alternatives_R=np.array([0, 3, 0, 2, 1, 0]),
        temperature_R=np.full(6, 0.8),
        streams_R=np.full(6, stream_of(5, ALTERNATIVES), np.uint64),
        positions_R=np.arange(6),
    )
    scores = score_rows(logits_NV.float(), wanted, row_bounds)
    for counts_R, tokens, found in (
        (wanted.cells_R, wanted.tokens_C, scores.logprobs_C),
        (wanted.top_R, scores.top_tokens_E, scores.top_logprobs_E),
        (wanted.alternatives_R, scores.alternatives_A, scores.alternative_logprobs_A),
    ):
        rows = torch.from_numpy(np.repeat(np.arange(6), counts_R)).to(logits_NV.device)
        targets = torch.from_numpy(tokens.astype(np.int64)).to(logits_NV.device)
        logprobs, _ = rows_logprobs(logits_NV[rows], targets)
        assert found.tolist() == logprobs.tolist()
