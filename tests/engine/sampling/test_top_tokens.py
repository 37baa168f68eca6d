"""The likeliest tokens of a row: their order, their ties, and padding where there are too few."""

import numpy as np
import pytest
import torch
from torch import Tensor

from weft.engine.sampling.top_tokens import pick_entries, top_tokens


def with_ties(rows: int, vocabulary: int, levels: int) -> Tensor:
    random = torch.Generator().manual_seed(levels)
    return torch.randint(levels, (rows, vocabulary), generator=random).float()


def plain(logits_NV: Tensor, k: int) -> list[list[int]]:
    """Sorted by logit, then by id."""
    return [
        sorted(range(len(row)), key=lambda token: (-row[token], token))[:k]
        for row in logits_NV.tolist()
    ]


@pytest.mark.parametrize("k", [1, 3, 20, 97, 200])
@pytest.mark.parametrize("levels", [1, 2, 12, 10**6])
def test_tokens_come_by_logit_and_equal_ones_by_id(levels: int, k: int) -> None:
    logits = with_ties(5, 97, levels)
    assert top_tokens(logits, k).tolist() == plain(logits, k)


def test_logits_stay_as_they_are() -> None:
    logits = with_ties(5, 97, 12)
    top_tokens(logits, 20)
    assert torch.equal(logits, with_ties(5, 97, 12))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_row_that_is_not_finite_changes_no_other(value: float) -> None:
    logits = with_ties(3, 97, 2)
    logits[1, ::2] = value
    expected = plain(with_ties(3, 97, 2), 20)
    found = top_tokens(logits, 20).tolist()
    assert (found[0], found[2]) == (expected[0], expected[2])


def test_each_row_has_as_many_entries_as_it_asked_for() -> None:
    tokens = np.array([[5, 6, 7], [8, 9, 10]])
    logprobs = np.array([[-1, -2, -3], [-4, -5, -6]], np.float32)
    found = pick_entries(tokens, logprobs, np.array([1, 3]))
    assert [values.tolist() for values in found] == [[5, 8, 9, 10], [-1, -4, -5, -6]]


def test_what_is_missing_or_impossible_is_padding() -> None:
    tokens = np.array([[5, 6]])
    logprobs = np.array([[-1, -np.inf]], np.float32)
    found = pick_entries(tokens, logprobs, np.array([4]))
    assert [values.tolist() for values in found] == [[5, 0, 0, 0], [-1] + [-99999] * 3]
    assert [values.dtype for values in found] == [np.int32, np.float32]
