"""Attention as transformers' modelling code calls it, carried out by the pass under way.

T rows, H query heads, G key and value heads, K head width.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..model.attention_form import AttentionForm
from .current import current
from .masks import Unpackable, Window

NAME = "weft"
# Arguments that say nothing about the computation, or what the pass knows already.
_IDLE = {"position_ids", "cache_position", "use_cache", "output_router_logits", "is_causal"}


def register() -> None:
    """Make our attention known to transformers under `NAME`; any number of times."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, window_of)


def window_of(**arguments: Any) -> Window:
    """What layers get for a mask; see `Masks.window`. Called by transformers."""
    masks = current().masks
    if masks is None or arguments.get("attention_mask") is not None:
        raise Unpackable("a mask is asked for outside of a packed batch")
    return masks.window(arguments.get("local_size"), arguments["mask_function"])


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Window | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """One layer's attention over the packed rows: [1, H, T, K], [1, G, T, K] twice -> [1, T, H, K].

    Raises:
        Unpackable: the layer asks for something that is not built here; named.
    """
    forward_pass = current()
    layer = getattr(module, "layer_idx", None)
    if forward_pass.attention is None or forward_pass.masks is None:
        raise Unpackable("attention is asked for outside of a packed batch")
    if not isinstance(attention_mask, Window):
        raise Unpackable(f"layer {layer} makes a mask of its own")
    if attention_mask.problem:
        raise Unpackable(attention_mask.problem)
    if sliding_window is not None and sliding_window >= forward_pass.masks.max_context:
        sliding_window = 0
    _refuse(layer, attention_mask.size, dropout, sliding_window, others)
    form = AttentionForm(
        scale=query.shape[-1] ** -0.5 if scaling is None else float(scaling),
        window=attention_mask.size,
        softcap=softcap or 0.0,
        sinks_H=None if s_aux is None else s_aux.detach(),
    )
    head_dim = max(forward_pass.head_dim, query.shape[-1])
    q, k, v = (_rows(x, head_dim) for x in (query, key, value))
    out_THK = forward_pass.attention.attend(int(layer or 0), q, k, v, form)
    return out_THK[None, ..., : value.shape[-1]], None


def _refuse(
    layer: object,
    window: int,
    dropout: float,
    sliding_window: int | None,
    others: dict[str, Any],
) -> None:
    if not isinstance(layer, int):
        raise Unpackable("an attention layer does not say which it is")
    if sliding_window is not None and window != sliding_window:
        raise Unpackable(f"layer {layer} has a window of {sliding_window}, its mask {window}")
    if dropout:
        raise Unpackable(f"layer {layer} has a dropout of {dropout}")
    if others.get("is_causal") is False:
        raise Unpackable(f"layer {layer} is not causal")
    for name, value in others.items():
        if name not in _IDLE and value is not None and value is not False:
            raise Unpackable(f"layer {layer} asks its attention for {name!r}")


def _rows(x_1HTK: Tensor, head_dim: int) -> Tensor:
    """[T, H, K] with zeros up to the width all layers have; they add nothing to a product."""
    if len(x_1HTK) != 1:
        raise Unpackable(f"attention is asked for {len(x_1HTK)} batch rows")
    x_THK = x_1HTK[0].transpose(0, 1)
    missing = head_dim - x_THK.shape[-1]
    return functional.pad(x_THK, (0, missing)) if missing else x_THK
