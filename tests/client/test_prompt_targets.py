"""Tokens to be scored in place of a prompt's: what is sent, what is refused, how scores go back."""

from typing import Any

import numpy as np
import pytest

from weft.client import prompt_targets
from weft.client.errors import BadRequest
from weft.client.prompt_targets import read_prompt_targets
from weft.client.tensor_data import TensorData


def matrix(rows: list[list[Any]]) -> TensorData:
    return TensorData(np.array(rows))


DENSE = matrix([[4, -1], [-1, -1], [5, 6]])
SPARSE = TensorData(
    [4, -1, 5, 6],
    shape=[3, 9],
    sparse_crow_indices=[0, 1, 2, 4],
    sparse_col_indices=[8, 0, 1, 2],
)


@pytest.mark.parametrize("given", [DENSE, SPARSE], ids=["dense", "sparse"])
def test_only_cells_that_name_a_token_are_sent(given: TensorData) -> None:
    targets = read_prompt_targets(given, 4, 10)
    assert targets.counts.tolist() == [1, 0, 2]
    assert targets.tokens.tolist() == [4, 5, 6]
    assert targets.counts.dtype == targets.tokens.dtype == np.int32


def test_scores_of_a_dense_matrix_are_dense_with_0_where_nothing_was_asked() -> None:
    scores = read_prompt_targets(DENSE, 4, 10).arrange(np.array([-1, -2, -3], np.float32))
    assert scores == matrix([[-1.0, 0.0], [0.0, 0.0], [-2.0, -3.0]])


def test_scores_of_a_sparse_matrix_are_at_its_listed_places() -> None:
    scores = read_prompt_targets(SPARSE, 4, 10).arrange(np.array([-1, -2, -3], np.float32))
    assert (scores.data, scores.dtype, scores.shape) == ([-1.0, 0.0, -2.0, -3.0], "float32", [3, 9])
    assert scores.sparse_crow_indices == SPARSE.sparse_crow_indices
    assert scores.sparse_col_indices == SPARSE.sparse_col_indices


@pytest.mark.parametrize(
    ("given", "message"),
    [
        pytest.param([[1], [2], [3]], "not a TensorData", id="a list"),
        pytest.param(matrix([[1.0], [2.0], [3.0]]), "floats, not token ids", id="floats"),
        pytest.param(TensorData([1, 2, 3]), r"shape \[3\], not \[3, K\]", id="a row"),
        pytest.param(matrix([[1], [2]]), r"shape \[2, 1\], not \[3, K\]", id="too few rows"),
        pytest.param(matrix([[-1]] * 3), "names no token", id="nothing"),
        pytest.param(matrix([[1], [-1], [10]]), "row 2: .* 10 is not in", id="vocabulary"),
        pytest.param(matrix([[1], [-2], [3]]), "row 1: .* -2 is not in", id="negative"),
        pytest.param(matrix([[1], [2**40], [3]]), "row 1: .* is not in", id="wide"),
    ],
)
def test_a_matrix_that_cannot_be_scored_is_refused(given: Any, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        read_prompt_targets(given, 4, 10)


def test_more_tokens_than_the_limit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_targets, "MAX_CELLS", 2)
    with pytest.raises(BadRequest, match="names 3 tokens, at most 2") as caught:
        read_prompt_targets(DENSE, 4, 10)
    assert caught.value.code == "too_large"
