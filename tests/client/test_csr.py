"""Listed places of a matrix."""

import numpy as np
import pytest

from weft.client.csr import Csr
from weft.client.errors import BadRequest


def csr(crow: list[int], cols: list[int], width: int) -> Csr:
    return Csr(np.array(crow, np.int64), np.array(cols, np.int64), width)


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (4, 40), (3, 0)])
def test_a_matrix_comes_back_from_its_listed_places(shape: tuple[int, int]) -> None:
    generator = np.random.default_rng(shape[1])
    matrix = generator.integers(0, 3, shape)
    made = Csr.of(matrix != 0)
    assert made.shape == list(shape)
    values = made.collect(matrix)
    assert values.all()
    assert made.spread(values).tolist() == matrix.tolist()
    assert made.spread(values, -1).tolist() == np.where(matrix == 0, -1, matrix).tolist()


@pytest.mark.parametrize(
    ("crow", "cols", "width", "message"),
    [
        pytest.param([], [], 3, "begins with 0", id="no pointer"),
        pytest.param([1, 2], [0, 1], 3, "begins with 0", id="first pointer"),
        pytest.param([0, 2, 1], [0], 3, "falls", id="falling"),
        pytest.param([0, 1], [0, 1], 3, "ends at 1 for 2", id="too many columns"),
        pytest.param([0, 3], [0, 1], 3, "ends at 3 for 2", id="too few columns"),
        pytest.param([0, 1], [3], 3, "outside 0 .. 2", id="large column"),
        pytest.param([0, 1], [-1], 3, "outside 0 .. 2", id="negative column"),
        pytest.param([0, 2], [1, 1], 3, "does not rise", id="twice"),
        pytest.param([0, 2], [1, 0], 3, "does not rise", id="falling columns"),
        pytest.param([0, 0], [], 2**40, "columns", id="wide"),
    ],
)
def test_indices_that_are_no_matrix_are_refused(
    crow: list[int], cols: list[int], width: int, message: str
) -> None:
    with pytest.raises(BadRequest, match=message):
        csr(crow, cols, width)


def test_equal_places_are_equal() -> None:
    assert csr([0, 1], [1], 3) == csr([0, 1], [1], 3)
    assert csr([0, 1], [1], 3) != csr([0, 1], [1], 4)
    assert csr([0, 1], [1], 3) != csr([0, 1], [2], 3)
