"""Packed sequences for the tests of the attention kernels, and what attention of each is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from weft.kernels.gpu import attention, attention_tables
from weft.kernels.gpu.attention_gradient import attend_gradient, build_tables
from weft.kernels.gpu.device_ints import DeviceInts

Attend = Callable[[Tensor, Tensor, Tensor, float], Tensor]


def random_rows(
    num_rows: int, num_heads: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype
) -> list[Tensor]:
    """q, k, v and the gradient of the output, on the CPU."""
    generator = torch.Generator().manual_seed(0)
    heads = (num_heads, num_kv_heads, num_kv_heads, num_heads)
    return [torch.randn(num_rows, n, head_dim, generator=generator).to(dtype) for n in heads]


def attend_packed(lengths: list[int], rows: list[Tensor], scale: float) -> list[Tensor]:
    """Output and gradients of q, k and v by the kernels, on the device of the rows."""
    q, k, v, dout = rows
    tables = build_tables(
        np.cumsum([0, *lengths]),
        num_heads=q.shape[1],
        num_kv_heads=k.shape[1],
        head_dim=q.shape[2],
        dtype=q.dtype,
        memory=DeviceInts(q.device),
    )
    out, lse = attention.attend(q, k, v, tables, scale)
    return [out, *attend_gradient(dout, q, k, v, out, lse, tables, scale)]


def attend_each(
    lengths: list[int], rows: list[Tensor], scale: float, attend: Attend
) -> list[Tensor]:
    """The same by a differentiable function of one sequence; zero in rows of none."""
    leaves = [x.detach().clone().requires_grad_() for x in rows[:3]]
    parts, start = [], 0
    for length in lengths:
        if length:
            own = slice(start, start := start + length)
            parts.append(attend(leaves[0][own], leaves[1][own], leaves[2][own], scale))
    out = torch.cat([*parts, torch.zeros_like(rows[0][start:], dtype=parts[0].dtype)])
    gradients = torch.autograd.grad(out, leaves, rows[3].to(out.dtype))
    return [out.detach(), *gradients]


def plain_attention(q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor, scale: float) -> Tensor:
    """Attention of one sequence as PyTorch spells it, in the dtype of its inputs."""
    repeats = q_THK.shape[1] // k_TGK.shape[1]
    k_THK, v_THK = (x.repeat_interleave(repeats, 1) for x in (k_TGK, v_TGK))
    scores = torch.einsum("thk,shk->hts", q_THK, k_THK) * scale
    future = torch.ones(scores.shape[1:], dtype=torch.bool, device=scores.device).triu(1)
    weights = scores.masked_fill(future, float("-inf")).softmax(-1)
    return torch.einsum("hts,shk->thk", weights, v_THK)


@contextmanager
def splits_of(size: int) -> Iterator[None]:
    """Cut keys into smaller splits, so that short sequences have several."""
    attention.forward_variant.cache_clear()
    with patch.object(attention, "SPLIT", size), patch.object(attention_tables, "SPLIT", size):
        yield
    attention.forward_variant.cache_clear()
