"""What the decoder computes beside its linears and attention, by the Triton kernels.

Results are contiguous, and gradients too. For backward a norm keeps its result's sum and a number
per row, rotation its arguments where heads are normed, SwiGLU its arguments; see `pieces`.
T tokens, D width, H query heads, G key heads, K head width, F feed-forward width.
"""

from typing import Any

import torch
from torch import Tensor

from ...kernels.gpu import norm, rope, swiglu


class TritonPieces:
    """Implements `Pieces`; a row has the same bits wherever it stands."""

    def add_rms_norm(
        self, x_TD: Tensor, delta_TD: Tensor | None, weight_D: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        both: tuple[Tensor, Tensor] = _AddRmsNorm.apply(x_TD, delta_TD, weight_D, eps)  # type: ignore[no-untyped-call]
        return both

    def rotated(
        self,
        q_THK: Tensor,
        k_TGK: Tensor,
        q_norm_K: Tensor | None,
        k_norm_K: Tensor | None,
        eps: float,
        angles: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        head_norm = None
        if q_norm_K is not None and k_norm_K is not None:
            head_norm = rope.HeadNorm(q_norm_K, k_norm_K, eps)
        both: tuple[Tensor, Tensor] = _Rotate.apply(q_THK, k_TGK, head_norm, *angles)  # type: ignore[no-untyped-call]
        return both

    def swiglu(self, gate_TF: Tensor, up_TF: Tensor) -> Tensor:
        product: Tensor = _SwiGlu.apply(gate_TF, up_TF)  # type: ignore[no-untyped-call]
        return product


class _AddRmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_TD: Tensor, delta_TD: Tensor | None, weight_D: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        if delta_TD is None:
            sum_TD, (y_TD, rstd_T) = x_TD, norm.rms_norm(x_TD, weight_D, eps)
        else:
            sum_TD, y_TD, rstd_T = norm.add_rms_norm(x_TD, delta_TD, weight_D, eps)
        ctx.save_for_backward(sum_TD, weight_D, rstd_T)
        ctx.set_materialize_grads(False)
        return sum_TD, y_TD

    @staticmethod
    def backward(
        ctx: Any, dsum_TD: Tensor | None, dy_TD: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        """One gradient for both terms of the sum."""
        sum_TD, weight_D, rstd_T = ctx.saved_tensors
        dx_TD = dsum_TD
        if dy_TD is not None:
            others_TD = None if dsum_TD is None else dsum_TD.contiguous()
            dx_TD = norm.rms_norm_backward(dy_TD.contiguous(), sum_TD, weight_D, rstd_T, others_TD)
        return dx_TD, dx_TD if ctx.needs_input_grad[1] else None, None, None


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_THK: Tensor,
        k_TGK: Tensor,
        head_norm: rope.HeadNorm | None,
        cos_T1J: Tensor,
        sin_T1J: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.head_norm = head_norm
        heads = () if head_norm is None else (q_THK, k_TGK)
        ctx.save_for_backward(cos_T1J, sin_T1J, *heads)
        return rope.rotate((q_THK, k_TGK), (cos_T1J, sin_T1J), head_norm)

    @staticmethod
    def backward(
        ctx: Any, dq_THK: Tensor, dk_TGK: Tensor
    ) -> tuple[Tensor, Tensor, None, None, None]:
        cos_T1J, sin_T1J, *heads = ctx.saved_tensors
        dqk = dq_THK.contiguous(), dk_TGK.contiguous()
        qk = (heads[0], heads[1]) if heads else None
        dq_THK, dk_TGK = rope.rotate_backward(dqk, (cos_T1J, sin_T1J), ctx.head_norm, qk)
        return dq_THK, dk_TGK, None, None, None


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_TF: Tensor, up_TF: Tensor) -> Tensor:
        ctx.save_for_backward(gate_TF, up_TF)
        return swiglu.swiglu(gate_TF, up_TF)

    @staticmethod
    def backward(ctx: Any, dy_TF: Tensor) -> tuple[Tensor, Tensor]:
        gate_TF, up_TF = ctx.saved_tensors
        return swiglu.swiglu_backward(dy_TF.contiguous(), gate_TF, up_TF)
