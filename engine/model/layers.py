"""Frozen pieces beside the linears: RMSNorm and SwiGLU, each one autograd function; capped logits.

No gradient of a weight exists. Every row is computed from that row alone.
T tokens, D width (model or head), F feed-forward width.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Scale each row to root mean square 1, then by `weight_D`; differentiable in x.

    The statistic is float32, like the product before its rounding to the dtype of x. Any number
    of leading dimensions.
    """
    normed: Tensor = _RmsNorm.apply(x_TD, weight_D, eps)  # type: ignore[no-untyped-call]
    return normed


def swiglu(gate_TF: Tensor, up_TF: Tensor, is_deterministic: bool = False) -> Tensor:
    """Return silu(gate) * up; differentiable in both.

    With `is_deterministic` the bits of a row do not depend on its place among the rows, whose
    number is then a multiple of 16.
    """
    is_composed = is_deterministic and not _has_whole_shares(gate_TF)
    product: Tensor = _SwiGlu.apply(gate_TF, up_TF, is_composed)  # type: ignore[no-untyped-call]
    return product


def capped(logits: Tensor, softcap: float) -> Tensor:
    """Return softcap * tanh(logits / softcap), in the memory of `logits`; as they are for 0."""
    return logits.div_(softcap).tanh_().mul_(softcap) if softcap else logits


def _has_whole_shares(x_TF: Tensor) -> bool:
    """Whether PyTorch's silu gives a row the same bits at every place.

    In float32 it computes what is left of a thread's share after steps of 32 by another routine,
    with other last bits. One thread, or two halves of rows that come in sixteens, leave nothing.
    Composed from operations without such ends it takes 6.4 instead of 2.7 ms, forward and
    backward of 1024 x 1536 on one thread.
    """
    if x_TF.device.type != "cpu" or x_TF.dtype != torch.float32:
        return True
    return torch.get_num_threads() <= 2 and x_TF.shape[-1] % 4 == 0


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        norm_T1 = torch.linalg.vector_norm(x_TD, dim=-1, keepdim=True, dtype=torch.float32)
        scale_T1 = norm_T1.square_().div_(x_TD.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x_TD, weight_D, scale_T1)
        y_TD: Tensor = (x_TD * scale_T1).to(x_TD.dtype).mul_(weight_D)
        return y_TD

    @staticmethod
    def backward(ctx: Any, dy_TD: Tensor) -> tuple[Tensor, None, None]:
        """dx = scale g - x scale^3 mean(g x), with g = dy weight."""
        x_TD, weight_D, scale_T1 = ctx.saved_tensors
        x_TD = x_TD.float()
        g_TD = dy_TD * weight_D.float()
        dot_T1 = (g_TD * x_TD).sum(-1, keepdim=True)
        share_T1 = dot_T1.mul_(scale_T1).mul_(scale_T1).mul_(scale_T1).div_(x_TD.shape[-1])
        dx_TD = g_TD.mul_(scale_T1).addcmul_(x_TD, share_T1, value=-1)
        return dx_TD.to(dy_TD.dtype), None, None


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_TF: Tensor, up_TF: Tensor, is_composed: bool) -> Tensor:
        ctx.save_for_backward(gate_TF, up_TF)
        ctx.is_composed = is_composed
        if is_composed:
            return _sigmoid(gate_TF).mul_(gate_TF).mul_(up_TF)
        return functional.silu(gate_TF).mul_(up_TF)

    @staticmethod
    def backward(ctx: Any, dy_TF: Tensor) -> tuple[Tensor, Tensor, None]:
        gate_TF, up_TF = ctx.saved_tensors
        if ctx.is_composed:
            slope_TF = _sigmoid(gate_TF)
            silu_TF = slope_TF * gate_TF
            slope_TF.mul_((gate_TF - silu_TF).add_(1))
            return slope_TF.mul_(dy_TF).mul_(up_TF), silu_TF.mul_(dy_TF), None
        dgate_TF = dy_TF * up_TF
        torch.ops.aten.silu_backward.grad_input(dgate_TF, gate_TF, grad_input=dgate_TF)
        return dgate_TF, functional.silu(gate_TF).mul_(dy_TF), None


def _sigmoid(x_TF: Tensor) -> Tensor:
    return torch.neg(x_TF).exp_().add_(1).reciprocal_()
