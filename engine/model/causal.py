"""Causal attention of sequences of one length, by batched matrix products.

In one call B sequences of length L stand as C = B * G key heads, each with its M = L * R query
rows, token by token; R query heads share a key head; K head width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .exact_attention import mix, product
from .linear import can_use_onednn

_MAX_KEPT = 256  # longer sequences compute their probabilities again for backward
_MIN_ONEDNN = 2**21  # multiplications; smaller products are quicker in one call for all
# Forward and backward of 1024 float32 tokens in 8 heads of 64, one thread, in ms: at length 64, 256
# and 1024 8.3, 24 and 72 with PyTorch's fused attention, 8, 17 and 46 here; bfloat16 18.6, 25 and
# 62 against 3.2, 8 and 28. Blocks of 64 up to length 128 and of 128 above were best or within 6 %.


def attend_causal(q_CMK: Tensor, k_CLK: Tensor, v_CLK: Tensor, is_exact: bool = False) -> Tensor:
    """Return softmax(K ** -0.5 q k^T) v, [C, M, K], each query seeing keys up to its own token.

    Differentiable. No bit of one key head depends on the others. With `is_exact`, on a CPU, those
    of a query do not depend on L either, a multiple of 16 then; see `exact_attention`.
    """
    if q_CMK.device.type == "cpu":
        mixed: Tensor = _Blocked.apply(  # type: ignore[no-untyped-call]
            q_CMK, k_CLK, v_CLK, is_exact
        )
        return mixed
    num_kv_heads, length, head_dim = k_CLK.shape
    q_CRLK = q_CMK.view(num_kv_heads, length, -1, head_dim).transpose(1, 2)
    out_CRLK = functional.scaled_dot_product_attention(
        q_CRLK, k_CLK.unsqueeze(1), v_CLK.unsqueeze(1), is_causal=True, enable_gqa=True
    )
    return out_CRLK.transpose(1, 2).reshape(q_CMK.shape)


class _Blocked(torch.autograd.Function):
    """Attention of one class in blocks of queries, each with the keys up to its last one.

    Half of the products of a long sequence are never formed, and the probabilities of long
    sequences are computed again for backward.
    """

    @staticmethod
    def forward(ctx: Any, q_CMK: Tensor, k_CLK: Tensor, v_CLK: Tensor, is_exact: bool) -> Tensor:
        out_CMK = torch.empty_like(q_CMK)
        kept = []
        for block in _blocks(q_CMK, k_CLK):
            weights, seen = _weights(q_CMK, k_CLK, block, is_exact), slice(block.stop)
            if is_exact:
                out_CMK[:, block.rows] = mix(weights, v_CLK[:, seen])
            else:
                _product(weights, v_CLK[:, seen], out_CMK[:, block.rows])
            if k_CLK.shape[1] <= _MAX_KEPT:
                kept.append(weights)
        ctx.is_exact = is_exact
        ctx.save_for_backward(q_CMK, k_CLK, v_CLK, *kept)
        return out_CMK

    @staticmethod
    def backward(ctx: Any, dout_CMK: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q_CMK, k_CLK, v_CLK, *kept = ctx.saved_tensors
        dq_CMK, dk_CLK, dv_CLK = (torch.empty_like(x) for x in (q_CMK, k_CLK, v_CLK))
        scale, is_first = q_CMK.shape[-1] ** -0.5, True
        # The last block sees every key: it goes first, and the others add to what it wrote.
        for block in reversed(_blocks(q_CMK, k_CLK)):
            weights = kept.pop() if kept else _weights(q_CMK, k_CLK, block, ctx.is_exact)
            seen, dout = slice(block.stop), dout_CMK[:, block.rows]
            _product(weights.transpose(1, 2), dout, dv_CLK[:, seen], not is_first)
            dweights = _product(dout, v_CLK[:, seen].transpose(1, 2))
            dscores = torch._softmax_backward_data(dweights, weights, -1, weights.dtype)
            dscores.mul_(scale)
            _product(dscores, k_CLK[:, seen], dq_CMK[:, block.rows])
            rows = q_CMK[:, block.rows]
            _product(dscores.transpose(1, 2), rows, dk_CLK[:, seen], not is_first)
            is_first = False
        return dq_CMK, dk_CLK, dv_CLK, None


@dataclass(frozen=True, slots=True)
class _Block:
    start: int  # first query token
    stop: int  # one past the last; keys from here on are not seen
    repeats: int

    @property
    def rows(self) -> slice:
        return slice(self.start * self.repeats, self.stop * self.repeats)


def _blocks(q_CMK: Tensor, k_CLK: Tensor) -> list[_Block]:
    length = k_CLK.shape[1]
    size = 64 if length <= 128 else 128
    repeats = q_CMK.shape[1] // length
    return [_Block(start, min(start + size, length), repeats) for start in range(0, length, size)]


def _weights(q_CMK: Tensor, k_CLK: Tensor, block: _Block, is_exact: bool) -> Tensor:
    """Probabilities of the keys a block of queries sees."""
    multiply = product if is_exact else _product
    scores = multiply(q_CMK[:, block.rows], k_CLK[:, : block.stop].transpose(1, 2))
    scores.mul_(q_CMK.shape[-1] ** -0.5)
    size = block.stop - block.start
    later = torch.full((size, size), float("-inf"), dtype=scores.dtype).triu_(1)
    scores[:, :, block.start :] += later.repeat_interleave(block.repeats, 0)
    return torch.softmax(scores, dim=-1)


def _product(
    a_CXY: Tensor, b_CYZ: Tensor, out: Tensor | None = None, accumulate: bool = False
) -> Tensor:
    """Batched a @ b; large float32 products go one by one to oneDNN, see `can_use_onednn`."""
    (count, num_rows, inner), num_columns = a_CXY.shape, b_CYZ.shape[2]
    if out is None:
        out = a_CXY.new_empty(count, num_rows, num_columns)
    if num_rows * inner * num_columns < _MIN_ONEDNN or not can_use_onednn(a_CXY):
        if count == 1 and torch.get_num_threads() > 1:
            return _product_alone(a_CXY, b_CYZ, out, accumulate)
        return torch.baddbmm(out, a_CXY, b_CYZ, beta=int(accumulate), out=out)
    for a, b, result in zip(a_CXY.unbind(), b_CYZ.unbind(), out.unbind(), strict=True):
        y = torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")
        result.add_(y) if accumulate else result.copy_(y)
    return out


def _product_alone(a_1XY: Tensor, b_1YZ: Tensor, out_1XZ: Tensor, accumulate: bool) -> Tensor:
    """The product with the bits it has among others: threads share one alone, in other parts.

    It is computed twice, in a tensor like the one that `out_1XZ` is a part of.
    """
    num_rows, num_columns = out_1XZ.shape[1:]
    pair = out_1XZ.new_empty(2, out_1XZ.stride(0) // num_columns, num_columns)[:, :num_rows]
    if accumulate:
        pair.copy_(out_1XZ)
    a_2XY, b_2YZ = a_1XY.expand(2, -1, -1), b_1YZ.expand(2, -1, -1)
    torch.baddbmm(pair, a_2XY, b_2YZ, beta=int(accumulate), out=pair)
    return out_1XZ.copy_(pair[:1])
