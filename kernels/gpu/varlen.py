"""PyTorch's own attention over packed sequences, where its arguments are the ones known here.

Versions differ: 2.10 says `is_causal`; 2.11 has `window_size` and `scale`, but no word on query
heads that share a key head; 2.12 and 2.13 have `enable_gqa`. It is made for CUDA and 16 bits.
"""

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

_POSITIONAL = ("query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k")
MAX_HEAD_DIM = 256


def varlen_options(signature: inspect.Signature, repeats: int) -> dict[str, Any] | None:
    """Keywords that make the function causal with `repeats` query heads a key head.

    `scale` is to be added. None where the signature is not one that is known to do this.
    """
    parameters = list(signature.parameters.values())
    names = [parameter.name for parameter in parameters]
    if tuple(names[: len(_POSITIONAL)]) != _POSITIONAL:
        return None
    others = parameters[len(_POSITIONAL) :]
    if any(parameter.default is inspect.Parameter.empty for parameter in others):
        return None
    if "window_size" not in names or "scale" not in names:
        return None
    options: dict[str, Any] = {"window_size": (-1, 0)}
    if repeats > 1:
        if "enable_gqa" not in names:
            return None
        options["enable_gqa"] = True
    return options


class Varlen:
    """The function of this PyTorch, if there is one."""

    def __init__(self) -> None:
        self._attend: Callable[..., Any] | None = None
        try:
            self._attend = import_module("torch.nn.attention.varlen").varlen_attn
        except (ImportError, AttributeError):
            return
        self._signature = inspect.signature(self._attend)

    def options(self, q_THK: Tensor, k_TGK: Tensor) -> dict[str, Any] | None:
        """Keywords for such tensors, without `scale`; None where it cannot serve them."""
        head_dim = q_THK.shape[2]
        if self._attend is None or q_THK.device.type != "cuda":
            return None
        if q_THK.dtype != torch.bfloat16 or head_dim % 8 or head_dim > MAX_HEAD_DIM:
            return None
        return varlen_options(self._signature, q_THK.shape[1] // k_TGK.shape[1])

    def attend(
        self,
        q_THK: Tensor,
        k_TGK: Tensor,
        v_TGK: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        options: dict[str, Any],
    ) -> Tensor:
        """Differentiable; see `attention.attend`. All rows belong to sequences."""
        assert self._attend is not None
        bounds = cu_seqlens, cu_seqlens, max_seqlen, max_seqlen
        out_THK: Tensor = self._attend(q_THK, k_TGK, v_TGK, *bounds, **options)
        return out_THK
