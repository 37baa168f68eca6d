"""Comparing logits, and finding which rows an output depends on."""

import pytest
import torch
from torch import Tensor

from weft.engine.hosted.probes import (
    LENGTHS,
    WatchingLinears,
    disagreement,
    probe_tokens,
    reached_rows,
)
from weft.engine.model.linear import DenseLinear


class Config:
    """Names three special tokens, two of them in a list."""

    def to_dict(self) -> dict[str, object]:
        return {"eos_token_id": [2, 3], "image_token_id": 4, "hidden_size": 5, "bos_token_id": None}


def test_probes_leave_special_tokens_out_and_are_always_the_same() -> None:
    probes = probe_tokens(Config(), 8, torch.device("cpu"))
    again = probe_tokens(Config(), 8, torch.device("cpu"))
    assert tuple(len(tokens) for tokens in probes) == LENGTHS
    assert not {2, 3, 4} & {int(token) for tokens in probes for token in tokens}
    assert all(torch.equal(*pair) for pair in zip(probes, again, strict=True))


def rows(num_wrong: int, error: float) -> tuple[Tensor, Tensor]:
    """Ten rows of logits, some of them off by a share of their norm."""
    expected = torch.randn(10, 50, generator=torch.Generator().manual_seed(0))
    found = expected.clone()
    found[:num_wrong] *= 1 + error
    return found, expected


@pytest.mark.parametrize(
    ("num_wrong", "error", "dtype", "agrees"),
    [
        pytest.param(10, 5e-5, torch.float32, True, id="rounding"),
        pytest.param(1, 5e-4, torch.float32, False, id="one row in float32"),
        pytest.param(10, 0.04, torch.bfloat16, True, id="rounding in bfloat16"),
        pytest.param(2, 1.0, torch.bfloat16, True, id="other experts for two rows in bfloat16"),
        pytest.param(3, 0.1, torch.bfloat16, False, id="three rows in bfloat16"),
    ],
)
def test_logits_agree_within_rounding(
    num_wrong: int, error: float, dtype: torch.dtype, agrees: bool
) -> None:
    assert (disagreement(*rows(num_wrong, error), dtype) == "") is agrees


def test_nan_never_agrees() -> None:
    found, expected = rows(1, torch.nan)
    assert disagreement(found, expected, torch.bfloat16) == "logits are not finite"


def test_rows_that_an_output_depends_on_are_found_however_little_it_does() -> None:
    base = DenseLinear(torch.eye(4))
    watch = WatchingLinears()
    (y_TD,) = watch.group(torch.ones(6, 4), (base,), (7,))
    hidden_TD = y_TD + 1e-20 * torch.roll(y_TD, 1, 0)  # each row feels the one before it
    reached = reached_rows(watch, hidden_TD, 3)
    assert reached[7].tolist() == [True, True, True, False, False, True]
