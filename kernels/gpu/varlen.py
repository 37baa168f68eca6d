"""PyTorch's own attention over packed sequences, where its arguments are the ones known here.

Versions differ: 2.10 says `is_causal`; 2.11 has `window_size` and `scale`, and takes query heads
that share a key head without a word; 2.12 and 2.13 refuse those without `enable_gqa`. It is made
for CUDA and 16 bits. What it is said to do is tried once, before it serves.
T tokens, H query heads, G key and value heads, K head width.
"""

import inspect
import logging
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)

_POSITIONAL = ("query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k")
MAX_HEAD_DIM = 256
ROUNDING = 2**-7  # bfloat16, twice


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
    if repeats > 1 and "enable_gqa" in names:
        options["enable_gqa"] = True
    return options


class Varlen:
    """The function of this PyTorch, if there is one."""

    def __init__(self) -> None:
        self._attend: Callable[..., Any] | None = None
        self._tried: dict[tuple[object, ...], bool] = {}  # by device and sizes of heads
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
        options = varlen_options(self._signature, q_THK.shape[1] // k_TGK.shape[1])
        if options is None:
            return None
        kind = q_THK.device, *q_THK.shape[1:], k_TGK.shape[1]
        if kind not in self._tried:
            self._tried[kind] = self.works(q_THK, k_TGK, options)
        return options if self._tried[kind] else None

    def works(self, q_THK: Tensor, k_TGK: Tensor, options: dict[str, Any]) -> bool:
        """Whether output and gradients are right for heads like these, in two small sequences.

        All scores are equal, so the output is the mean of the values so far.
        """
        heads, repeats = k_TGK.shape[1], q_THK.shape[1] // k_TGK.shape[1]
        q_THK, k_TGK = (x.new_ones(3, *x.shape[1:], requires_grad=True) for x in (q_THK, k_TGK))
        tokens_TG1 = torch.arange(3 * heads, device=k_TGK.device).view(3, heads, 1)
        v_TGK = (tokens_TG1 % 11).expand(k_TGK.shape).to(k_TGK.dtype).requires_grad_()
        bounds = torch.tensor([0, 1, 3], dtype=torch.int32, device=k_TGK.device)
        try:
            with torch.enable_grad():
                all_options = {**options, "scale": 0.5}
                out_THK = self.attend(q_THK, k_TGK, v_TGK, bounds, 2, all_options)
            leaves = (q_THK, k_TGK, v_TGK)
            dq, dk, dv = torch.autograd.grad(out_THK, leaves, torch.ones_like(out_THK))
        except (RuntimeError, TypeError, ValueError) as error:
            log.warning("packed attention of PyTorch %s fails: %s", torch.__version__, error)
            return False
        values_TGK = v_TGK.detach().float()
        means_TGK = torch.stack([values_TGK[0], values_TGK[1], values_TGK[1:].mean(0)])
        means_THK = means_TGK.repeat_interleave(repeats, 1)
        dv_T11 = repeats * means_TGK.new_tensor([1, 1.5, 0.5]).view(3, 1, 1)
        is_right = (
            torch.allclose(out_THK.detach().float(), means_THK, rtol=ROUNDING)
            and torch.allclose(dv.float(), dv_T11.expand(dv.shape), rtol=ROUNDING)
            and bool(dq.isfinite().all() and dk.isfinite().all())
        )
        if not is_right:
            log.warning("packed attention of PyTorch %s is wrong here", torch.__version__)
        return is_right

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
