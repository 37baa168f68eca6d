"""Judgements of numbers: what passes, what fails, and that NaN never passes."""

import math

import pytest
import torch
from torch import Tensor

from weft.engine.verify.compare import (
    compare_gradients,
    compare_greedy,
    compare_isolated,
    compare_logits,
    gradients_limit,
    logits_limit,
)

LIMIT = 1e-2


def rows(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, 11, generator=generator) for length in (3, 1, 7)]


def shifted(tensors: list[Tensor], by: float) -> list[Tensor]:
    return [tensor + by * (-1) ** torch.arange(11) for tensor in tensors]


@pytest.mark.parametrize(("by", "status"), [(0.0, "PASS"), (5e-3, "PASS"), (2e-2, "FAIL")])
def test_logits_pass_within_the_limit(by: float, status: str) -> None:
    check = compare_logits(shifted(rows(), by), rows(), LIMIT, is_packed=True)

    assert check.status == status
    assert "11 rows of 3 sequences packed" in check.detail


def test_a_common_shift_of_large_logits_does_not_hide_an_error() -> None:
    large = [tensor + 1000 for tensor in rows()]

    assert compare_logits(shifted(large, 2e-2), large, LIMIT, is_packed=True).status == "FAIL"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_fails(value: float) -> None:
    bad = rows()
    bad[1][0, 2] = value

    assert compare_logits(bad, rows(), LIMIT, is_packed=True).status == "FAIL"
    assert compare_isolated(bad, rows(), LIMIT, is_packed=True).status == "FAIL"


def test_logits_of_another_shape_fail() -> None:
    check = compare_logits(rows()[:2], rows(), LIMIT, is_packed=False)

    assert (check.status, check.detail[:10]) == ("FAIL", "logits are")


@pytest.mark.parametrize(
    ("ours", "gaps", "status", "figure"),
    [
        ([[1, 2, 3]], [[0, 0, 0]], "PASS", "3 of 3 tokens"),
        ([[1, 5, 6]], [[0, 0.05, 9]], "PASS", "1 of 3 tokens"),
        ([[1, 5, 3]], [[0, 0.2, 0]], "FAIL", "1 of 3 tokens"),
        ([[1, 2]], [[0, 0]], "FAIL", "2 of 3 tokens"),
    ],
    ids=["equal", "a tie", "another token", "too short"],
)
def test_greedy_tokens_may_part_only_where_two_are_equally_likely(
    ours: list[list[int]], gaps: list[list[float]], status: str, figure: str
) -> None:
    check = compare_greedy(ours, [[1, 2, 3]], gaps, slack=0.1)

    assert (check.status, check.figure) == (status, figure)


def gradients(by: float = 0.0) -> dict[str, Tensor]:
    first, second = (torch.randn(4, 6, generator=torch.Generator().manual_seed(n)) for n in (0, 1))
    return {"a.lora_a": first * (1 + by), "b.lora_b": second}


@pytest.mark.parametrize(("by", "status"), [(0.0, "PASS"), (5e-3, "PASS"), (0.05, "FAIL")])
def test_gradients_pass_within_the_limit_of_every_tenant(by: float, status: str) -> None:
    ours = [gradients(), gradients(by)]

    check = compare_gradients(ours, [gradients(), gradients()], (1, 8), LIMIT, is_packed=True)

    assert check.status == status
    assert "rank 1, 8 in one batch, 4 tensors" in check.detail


def test_one_small_tensor_that_is_all_wrong_fails_and_is_named() -> None:
    expected = gradients() | {"c.lora_a": torch.full((2, 2), 1e-2)}
    ours = expected | {"c.lora_a": torch.zeros(2, 2)}

    check = compare_gradients([ours], [expected], (4,), LIMIT, is_packed=True)

    assert check.status == "FAIL"
    assert "worst c.lora_a (rank 4) 1.0e+00" in check.detail


def test_a_gradient_that_is_missing_or_nan_fails() -> None:
    expected = gradients()
    less = {"a.lora_a": expected["a.lora_a"]}
    bad = expected | {"b.lora_b": torch.full((4, 6), math.nan)}

    for ours in (less, bad):
        assert compare_gradients([ours], [expected], (4,), LIMIT, is_packed=True).status == "FAIL"


def test_one_of_several_neighbours_that_differs_fails() -> None:
    together = [rows()[0], rows()[1] + torch.arange(11.0), rows()[2]]

    assert compare_isolated(rows(), rows(), LIMIT, is_packed=True).status == "PASS"
    assert compare_isolated(together, rows(), LIMIT, is_packed=False).status == "FAIL"


def test_limits_grow_with_depth_in_bfloat16_alone() -> None:
    assert logits_limit(torch.float32, 2) == logits_limit(torch.float32, 80) == 1e-4
    assert logits_limit(torch.bfloat16, 8) == pytest.approx(2 * logits_limit(torch.bfloat16, 2))
    assert gradients_limit(torch.float32, 2) == 1e-4
    # What a wrong scale or a missing linear is off by, in the deepest model that is served.
    assert gradients_limit(torch.bfloat16, 80) < 0.5
