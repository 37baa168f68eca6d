"""Which signatures of PyTorch's packed attention are known."""

import inspect
from typing import Any

import pytest
import torch

from weft.kernels.gpu.varlen import Varlen, varlen_options


def of_2_10(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):
    """Without a window."""


def of_2_11(
    query,
    key,
    value,
    cu_seq_q,
    cu_seq_k,
    max_q,
    max_k,
    *,
    return_aux=None,
    scale=None,
    window_size=(-1, -1),
):
    """Without shared key heads."""


def of_2_13(
    query,
    key,
    value,
    cu_seq_q,
    cu_seq_k,
    max_q,
    max_k,
    *,
    return_aux=None,
    scale=None,
    window_size=(-1, -1),
    enable_gqa=False,
    seqused_k=None,
    block_table=None,
    num_splits=None,
):
    """With both."""


def renamed(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1)):
    """Other names."""


def demanding(
    query,
    key,
    value,
    cu_seq_q,
    cu_seq_k,
    max_q,
    max_k,
    mask,
    *,
    scale=None,
    window_size=(-1, -1),
):
    """One more that must be given."""


CAUSAL = {"window_size": (-1, 0)}


@pytest.mark.parametrize(
    ("function", "repeats", "options"),
    [
        (of_2_10, 1, None),
        (of_2_11, 1, CAUSAL),
        (of_2_11, 4, None),
        (of_2_13, 1, CAUSAL),
        (of_2_13, 4, {**CAUSAL, "enable_gqa": True}),
        (renamed, 1, None),
        (demanding, 1, None),
    ],
)
def test_options_follow_from_the_signature(
    function: Any, repeats: int, options: dict[str, Any] | None
) -> None:
    assert varlen_options(inspect.signature(function), repeats) == options


def test_it_is_not_used_on_a_cpu() -> None:
    q = torch.zeros(4, 2, 64, dtype=torch.bfloat16)
    assert Varlen().options(q, q) is None
