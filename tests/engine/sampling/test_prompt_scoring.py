"""What a request asks of its prompt, as rows, and what it is answered."""

from typing import Any

import numpy as np
import pytest

from weft.engine.sampling.prompt_scoring import PromptScoring
from weft.engine.sampling.prompt_targets import PromptTargets
from weft.engine.sampling.requests import SampleRequest
from weft.engine.sampling.scoring import Scores, Scoring

PROMPT = [10, 11, 12, 13]
TARGETS = PromptTargets(np.array([0, 2, 1]), np.array([20, 21, 22]))


def scoring_of(**options: Any) -> PromptScoring:
    return PromptScoring(
        SampleRequest(
            key="a",
            tokens=np.array(PROMPT),
            num_samples=1,
            max_tokens=1,
            temperature=0.5,
            seed=0,
            **options,
        )
    )


def all_of(scoring: PromptScoring) -> Scoring:
    wanted = scoring.between(0, len(PROMPT))
    assert wanted is not None
    return wanted


@pytest.mark.parametrize(
    ("options", "rows", "tokens"),
    [
        ({"prompt_logprobs": True}, [0, 1, 2], [11, 12, 13]),
        ({"prompt_logprobs": True, "prompt_logprobs_last_n": 2}, [1, 2], [12, 13]),
        ({"prompt_targets": TARGETS}, [1, 2], [20, 21, 22]),
        ({"prompt_logprobs": True, "prompt_targets": TARGETS}, [0, 1, 2], [11, 12, 20, 21, 13, 22]),
        (
            {"prompt_logprobs": True, "prompt_logprobs_last_n": 1, "prompt_targets": TARGETS},
            [1, 2],
            [20, 21, 13, 22],
        ),
        ({"topk_prompt_logprobs": 2}, [0, 1, 2], []),
        ({"prompt_alt_tokens_k": 2}, [0, 1, 2], []),
    ],
)
def test_only_rows_and_tokens_that_are_asked_for_are_scored(
    options: dict[str, Any], rows: list[int], tokens: list[int]
) -> None:
    wanted = all_of(scoring_of(**options))
    assert (wanted.rows_R.tolist(), wanted.tokens_C.tolist()) == (rows, tokens)


def test_the_last_tokens_bound_the_likeliest_and_not_the_alternatives() -> None:
    options = {"prompt_logprobs": True, "topk_prompt_logprobs": 5, "prompt_alt_tokens_k": 2}
    wanted = all_of(scoring_of(**options, prompt_logprobs_last_n=1))
    assert wanted.top_R.tolist() == [0, 0, 5]
    assert wanted.cells_R.tolist() == [0, 0, 1]
    assert wanted.alternatives_R.tolist() == [2, 2, 2]
    assert wanted.temperature_R.tolist() == [0.5] * 3


def test_nothing_asked_for_is_nothing_to_score() -> None:
    scoring = scoring_of()
    assert scoring.between(0, 4) is None
    assert scoring.arrays(Scores.join([])) == {}


def test_scores_become_the_arrays_of_the_answer() -> None:
    scoring = scoring_of(
        prompt_logprobs=True,
        prompt_logprobs_last_n=2,
        prompt_targets=TARGETS,
        topk_prompt_logprobs=2,
        prompt_alt_tokens_k=1,
    )
    scores = Scores(
        np.array([-12, -20, -21, -13, -22], np.float32),
        np.array([1, 2, 3, 4], np.int32),
        np.array([-1, -2, -3, -4], np.float32),
        np.array([7, 8, 9], np.int32),
        np.array([-7, -8, -9], np.float32),
    )
    arrays = {name: values.tolist() for name, values in scoring.arrays(scores).items()}
    assert str(arrays.pop("prompt_logprobs")) == "[nan, nan, -12.0, -13.0]"
    assert arrays == {
        "target_prompt_logprobs": [-20, -21, -22],
        "topk_prompt_tokens": [[1, 2], [3, 4]],
        "topk_prompt_logprobs": [[-1, -2], [-3, -4]],
        "prompt_alt_tokens": [[7], [8], [9]],
        "prompt_alt_logprobs": [[-7], [-8], [-9]],
    }
