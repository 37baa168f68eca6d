"""Scores, likeliest tokens and alternatives of rows, against a plain softmax."""

import numpy as np
import pytest
import torch
from torch import Tensor

from weft.engine.sampling.sampler import ALTERNATIVES, stream_of
from weft.engine.sampling.score_rows import score_rows
from weft.engine.sampling.scoring import Scores, Scoring

V = 300
ROWS = 6
MANY = 20_000


@pytest.fixture
def logits() -> Tensor:
    return 3 * torch.randn(ROWS, V, generator=torch.Generator().manual_seed(0))


def scoring() -> Scoring:
    """Rows that want different things."""
    return Scoring(
        rows_R=np.arange(ROWS),
        cells_R=np.array([1, 0, 3, 0, 0, 1]),
        tokens_C=np.array([7, 1, 2, 3, 299]),
        top_R=np.array([0, 5, 2, 0, 0, 1]),
        alternatives_R=np.array([0, 3, 0, MANY, 0, 2]),
        temperature_R=np.array([1, 0.5, 1, 2, 1, 0]),
        streams_R=np.full(ROWS, stream_of(5, ALTERNATIVES), np.uint64),
        positions_R=np.arange(ROWS),
    )


def test_all_logprobs_are_those_of_the_softmax_at_temperature_one(logits: Tensor) -> None:
    wanted = scoring()
    logprobs = logits.double().log_softmax(-1).numpy()
    scores = score_rows(logits.clone(), wanted)
    rows = np.arange(ROWS)
    for repeats, tokens, found in (
        (wanted.cells_R, wanted.tokens_C, scores.logprobs_C),
        (wanted.top_R, scores.top_tokens_E, scores.top_logprobs_E),
        (wanted.alternatives_R, scores.alternatives_A, scores.alternative_logprobs_A),
    ):
        # float32 of numbers up to 20
        np.testing.assert_allclose(found, logprobs[np.repeat(rows, repeats), tokens], atol=1e-5)


def test_the_likeliest_are_the_first_of_a_sorted_row(logits: Tensor) -> None:
    order = logits.argsort(-1, descending=True)
    found = score_rows(logits.clone(), scoring()).top_tokens_E.tolist()
    assert found == [*order[1, :5].tolist(), *order[2, :2].tolist(), int(order[5, 0])]


def test_alternatives_come_as_often_as_the_tempered_softmax_says(logits: Tensor) -> None:
    alternatives = score_rows(logits.clone(), scoring()).alternatives_A
    shares = np.bincount(alternatives[3 : 3 + MANY], minlength=V) / MANY
    tempered, plain = ((logits[3].double() / t).softmax(-1).numpy() for t in (2, 1))
    # Independent draws miss all shares together by at most sqrt(2 V / (pi MANY)) = 0.10 on average.
    assert np.abs(shares - tempered).sum() < 0.12 < np.abs(shares - plain).sum()


def test_alternatives_at_temperature_zero_are_the_likeliest(logits: Tensor) -> None:
    alternatives = score_rows(logits.clone(), scoring()).alternatives_A
    assert alternatives[3 + MANY :].tolist() == [int(logits[5].argmax())] * 2


def test_no_bit_of_a_row_depends_on_the_others(logits: Tensor) -> None:
    wanted = scoring()
    together = score_rows(logits.clone(), wanted)
    alone = Scores.join(
        [
            score_rows(logits[row : row + 1].clone(), part)
            for row, part in enumerate(wanted.cut(range(ROWS + 1)))
        ]
    )
    np.testing.assert_array_equal(together.logprobs_C, alone.logprobs_C)
    np.testing.assert_array_equal(together.top_tokens_E, alone.top_tokens_E)
    np.testing.assert_array_equal(together.top_logprobs_E, alone.top_logprobs_E)
    np.testing.assert_array_equal(together.alternatives_A, alone.alternatives_A)
    np.testing.assert_array_equal(together.alternative_logprobs_A, alone.alternative_logprobs_A)


def test_a_row_of_nan_is_told_and_spoils_no_other(logits: Tensor) -> None:
    wanted, clean = scoring(), score_rows(logits.clone(), scoring())
    spoiled = logits.clone()
    spoiled[3] = torch.nan
    dealt = score_rows(spoiled, wanted).deal(wanted.cut([0, 3, 4, 6]))
    assert [part is not None and part.is_finite for part in dealt] == [True, False, True]
    assert dealt[0] is not None
    np.testing.assert_array_equal(dealt[0].logprobs_C, clean.logprobs_C[:4])
