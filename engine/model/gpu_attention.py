"""Attention over packed sequences on a GPU; imported only where Triton computes.

T tokens, H query heads, G key and value heads, K head width.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from ...kernels.gpu.attention import attend
from ...kernels.gpu.attention_gradient import attend_gradient, build_tables
from ...kernels.gpu.attention_tables import PackedTables
from ...kernels.gpu.device_ints import DeviceInts
from ...kernels.gpu.varlen import Varlen
from .attention import PackedAttention
from .attention_form import AttentionForm

Heads = tuple[int, int, int]  # query heads, key heads, their width


class TritonAttentions:
    """Makes the attention of one batch after the other, in memory that it keeps.

    Args:
        is_deterministic: a row's bits are those that decoding gives it, and no gradient depends on
            the order in which programs run. Otherwise PyTorch's own kernel serves where it can.
    """

    def __init__(self, device: torch.device | str, *, is_deterministic: bool) -> None:
        self.device = torch.device(device)
        self.varlen = None if is_deterministic else Varlen()
        self._memories: dict[Heads, DeviceInts] = {}

    def __call__(self, cu_seqlens: npt.ArrayLike) -> "TritonAttention":
        """See `PackedAttention`. Those made before are not to be used any more."""
        return TritonAttention(cu_seqlens, self)

    def memory(self, heads: Heads) -> DeviceInts:
        """Where the tables of layers with such heads lie; zeros for what all layers share."""
        if heads not in self._memories:
            self._memories[heads] = DeviceInts(self.device)
        return self._memories[heads]


class TritonAttention:
    """Causal attention inside each of N packed sequences; `PackedAttention` says what it gives.

    Forms with a window, a softcap or sinks are computed by `PackedAttention`.
    """

    def __init__(self, cu_seqlens: npt.ArrayLike, owner: TritonAttentions) -> None:
        self._packed = PackedAttention(cu_seqlens, owner.device)
        self._bounds = np.asarray(cu_seqlens, np.int64)
        self._longest = int(np.diff(self._bounds).max(initial=0))
        self._owner = owner
        self._tables: dict[Heads, PackedTables] = {}  # most models have one
        self._cu_seqlens: Tensor | None = None

    def attend(
        self,
        layer: int,
        q_THK: Tensor,
        k_TGK: Tensor,
        v_TGK: Tensor,
        form: AttentionForm | None = None,
    ) -> Tensor:
        """See `Attention.attend`; `layer` does not matter here."""
        if not self._longest or (form is not None and not form.is_plain(self._longest)):
            return self._packed.attend(layer, q_THK, k_TGK, v_TGK, form)
        scale = q_THK.shape[2] ** -0.5 if form is None else form.scale
        varlen = self._owner.varlen
        options = varlen.options(q_THK, k_TGK) if varlen is not None else None
        if varlen is not None and options is not None:
            return self._attend_varlen(varlen, q_THK, k_TGK, v_TGK, {**options, "scale": scale})
        tables = self._tables_for(q_THK, k_TGK)
        out: Tensor = _Attend.apply(q_THK, k_TGK, v_TGK, tables, scale)  # type: ignore[no-untyped-call]
        return out

    def _attend_varlen(
        self, varlen: Varlen, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor, options: dict[str, Any]
    ) -> Tensor:
        if self._cu_seqlens is None:
            (self._cu_seqlens,) = self._owner.memory((0, 0, 0)).write(
                [self._bounds.astype(np.int32)]
            )
        padding, bounds = len(q_THK) - int(self._bounds[-1]), (self._cu_seqlens, self._longest)
        if not padding:
            return varlen.attend(q_THK, k_TGK, v_TGK, *bounds, options)
        q_THK, k_TGK, v_TGK = (x[:-padding] for x in (q_THK, k_TGK, v_TGK))
        out_THK = varlen.attend(q_THK, k_TGK, v_TGK, *bounds, options)
        return functional.pad(out_THK, (0, 0, 0, 0, 0, padding))

    def _tables_for(self, q_THK: Tensor, k_TGK: Tensor) -> PackedTables:
        heads = q_THK.shape[1], k_TGK.shape[1], q_THK.shape[2]
        if heads not in self._tables:
            self._tables[heads] = build_tables(
                self._bounds,
                num_heads=heads[0],
                num_kv_heads=heads[1],
                head_dim=heads[2],
                dtype=q_THK.dtype,
                memory=self._owner.memory(heads),
            )
        return self._tables[heads]


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor, tables: PackedTables, scale: float
    ) -> Tensor:
        out_THK, lse_TH = attend(q_THK, k_TGK, v_TGK, tables, scale)
        # The tables of another batch in the same memory would make autograd refuse.
        ctx.save_for_backward(q_THK, k_TGK, v_TGK, out_THK, lse_TH, tables.query_tiles)
        ctx.tables, ctx.scale = tables, scale
        return out_THK

    @staticmethod
    def backward(ctx: Any, dout_THK: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, _ = ctx.saved_tensors
        dq, dk, dv = attend_gradient(dout_THK, q, k, v, out, lse, ctx.tables, ctx.scale)
        return dq, dk, dv, None, None
