"""Frozen pieces between the linears: RMSNorm and SwiGLU, each one autograd function.

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

    PyTorch computes the ends of each thread's share of a float32 sigmoid or silu by another
    routine, with other last bits; `is_deterministic` composes them from operations that do not,
    so that a row's bits do not depend on its place (half as fast).
    """
    product: Tensor = _SwiGlu.apply(  # type: ignore[no-untyped-call]
        gate_TF, up_TF, is_deterministic
    )
    return product


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
    def forward(ctx: Any, gate_TF: Tensor, up_TF: Tensor, is_deterministic: bool) -> Tensor:
        ctx.save_for_backward(gate_TF, up_TF)
        ctx.is_deterministic = is_deterministic
        if is_deterministic:
            return _sigmoid(gate_TF).mul_(gate_TF).mul_(up_TF)
        return functional.silu(gate_TF).mul_(up_TF)

    @staticmethod
    def backward(ctx: Any, dy_TF: Tensor) -> tuple[Tensor, Tensor, None]:
        gate_TF, up_TF = ctx.saved_tensors
        if ctx.is_deterministic:
            slope_TF = _sigmoid(gate_TF)
            silu_TF = slope_TF * gate_TF
            slope_TF.mul_((gate_TF - silu_TF).add_(1))
            return slope_TF.mul_(dy_TF).mul_(up_TF), silu_TF.mul_(dy_TF), None
        dgate_TF = dy_TF * up_TF
        torch.ops.aten.silu_backward.grad_input(dgate_TF, gate_TF, grad_input=dgate_TF)
        return dgate_TF, functional.silu(gate_TF).mul_(dy_TF), None


def _sigmoid(x_TF: Tensor) -> Tensor:
    return torch.neg(x_TF).exp_().add_(1).reciprocal_()
