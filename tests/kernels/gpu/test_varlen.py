"""Which signatures of PyTorch's packed attention are known."""

import inspect
from itertools import pairwise
from typing import Any

import interpreter
import pytest
import torch
from attention_helpers import attend_each, plain_attention, random_rows
from kernel_errors import check_errors
from torch import Tensor

from weft.kernels.gpu.varlen import Varlen, varlen_options
from weft.kernels.reference import causal_attention


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
    """Takes shared key heads without a word."""


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
    """Shared key heads by name."""


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
        (of_2_11, 4, CAUSAL),
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


def attend_rightly(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
    bounds, options = rest[0].tolist(), rest[-1]
    return torch.cat(
        [
            plain_attention(q[first:last], k[first:last], v[first:last], options["scale"])
            for first, last in pairwise(bounds)
        ]
    )


def refuse(*arguments: Any, **options: Any) -> Tensor:
    raise ValueError("not so many heads")


@pytest.mark.parametrize(
    ("attend", "is_right"),
    [
        pytest.param(lambda *x, **y: attend_rightly(*x, y), True, id="right"),
        pytest.param(lambda q, k, v, *x, **y: attend_rightly(q, k.flip(1), v.flip(1), *x, y), False, id="heads of others"),
        pytest.param(lambda q, k, v, c, *x, **y: attend_rightly(q, k, v, c[::2], *x, y), False, id="one sequence"),
        pytest.param(lambda *x, **y: attend_rightly(*x, y).detach().requires_grad_(), False, id="no gradient"),
        pytest.param(lambda q, k, v, *x, **y: attend_rightly(q, k, 2 * v - v.detach(), *x, y), False, id="twice the gradient"),
        pytest.param(refuse, False, id="refused"),
    ],
)  # fmt: skip
def test_it_is_tried_with_shared_key_heads_before_it_serves(attend: Any, is_right: bool) -> None:
    varlen = Varlen()
    varlen._attend = attend
    q, k = (torch.zeros(0, heads, 16, dtype=torch.bfloat16) for heads in (4, 2))
    assert varlen.works(q, k, CAUSAL) is is_right


@pytest.mark.skipif(interpreter.IS_INTERPRETED, reason="PyTorch's kernel needs a CUDA device")
@pytest.mark.parametrize("heads", [(2, 2, 128), (8, 2, 128), (7, 1, 64)])
def test_it_gives_the_values_and_gradients_of_ours(heads: tuple[int, int, int]) -> None:
    lengths, device = [70, 0, 1, 300], interpreter.kernel_device()
    rows = random_rows(sum(lengths), *heads, torch.bfloat16)
    q, k, v = (x.to(device).requires_grad_() for x in rows[:3])
    varlen, bounds = Varlen(), torch.tensor(lengths, device=device).cumsum(0)
    options = varlen.options(q, k)
    if options is None:
        pytest.skip("this PyTorch has no packed attention for such heads")
    cu_seqlens = torch.nn.functional.pad(bounds, (1, 0)).int()
    out = varlen.attend(q, k, v, cu_seqlens, max(lengths), {**options, "scale": 0.3})
    found = [out.detach(), *torch.autograd.grad(out, (q, k, v), rows[3].to(device))]
    exact = attend_each(lengths, [x.double() for x in rows], 0.3, causal_attention)
    check_errors(found, attend_each(lengths, rows, 0.3, plain_attention), exact)
