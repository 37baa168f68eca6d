"""Attention over packed sequences, handed to the decoder from outside.

T tokens, N sequences; in one length class B sequences of padded length L; H query heads, G key
and value heads, R = H / G, K head width.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

# Longer classes go to PyTorch's fused attention. One thread, forward and backward of 1024 tokens
# in 8 heads of 64: explicit products 5.1 ms at length 64 and 22 ms at 256, fused 8.3 and 24 ms
# (float32); 2.7 and 8.5 against 18.6 and 25 ms (bfloat16).
_MAX_EXPLICIT = 256


class Attention(Protocol):
    """Which tokens see which keys; the same for training, prefill and decode."""

    def attend(self, layer: int, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor) -> Tensor:
        """Return softmax(scale q k^T) v, [T, H, K], for the new tokens of this forward pass.

        Keys already carry their positions; scale is K ** -0.5; query head h reads key head
        h // (H // G).
        """


class PackedAttention:
    """Causal attention inside each of N packed sequences; differentiable, keeps no keys.

    Sequences are grouped by a length class that depends on their own length alone, and padded
    with their own last token: the number of operations follows the classes, never the sequences,
    and neither bits nor NaN of one sequence reach another.

    Args:
        cu_seqlens: bounds [N + 1], from 0, non-decreasing. Rows beyond the last bound are padding
            of the batch: their output and gradient are zero.
    """

    def __init__(self, cu_seqlens: npt.ArrayLike, device: torch.device | str = "cpu") -> None:
        bounds = np.asarray(cu_seqlens, dtype=np.int64)
        if bounds.ndim != 1 or not bounds.size or bounds[0] or (np.diff(bounds) < 0).any():
            raise ValueError("cu_seqlens is not a list of bounds from 0 that never decrease")
        self._bounds = bounds
        self._device = device
        self._classes = _classes(bounds)
        self._layouts: dict[int, _Layout] = {}
        self._masks: dict[tuple[int, int, torch.dtype], Tensor] = {}

    def attend(self, layer: int, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor) -> Tensor:
        """See `Attention.attend`; `layer` does not matter here."""
        heads, kv_heads = self._layout(q_THK.shape[1]), self._layout(k_TGK.shape[1])
        q_parts = _Gather.apply(q_THK, heads)  # type: ignore[no-untyped-call]
        k_parts = _Gather.apply(k_TGK, kv_heads)  # type: ignore[no-untyped-call]
        v_parts = _Gather.apply(v_TGK, kv_heads)  # type: ignore[no-untyped-call]
        mixed = [self._attend(*part) for part in zip(q_parts, k_parts, v_parts, strict=True)]
        out: Tensor = _Scatter.apply(heads, q_THK, *mixed)  # type: ignore[no-untyped-call]
        return out

    def _attend(self, q_BHLK: Tensor, k_BGLK: Tensor, v_BGLK: Tensor) -> Tensor:
        length = q_BHLK.shape[2]
        if q_BHLK.device.type != "cpu" or length > _MAX_EXPLICIT:
            return functional.scaled_dot_product_attention(
                q_BHLK, k_BGLK, v_BGLK, is_causal=True, enable_gqa=True
            )
        key = (length, q_BHLK.shape[1] // k_BGLK.shape[1], q_BHLK.dtype)
        if key not in self._masks:
            self._masks[key] = _causal_mask(*key)
        mixed: Tensor = _Explicit.apply(  # type: ignore[no-untyped-call]
            q_BHLK, k_BGLK, v_BGLK, self._masks[key]
        )
        return mixed

    def _layout(self, num_heads: int) -> "_Layout":
        if num_heads not in self._layouts:
            layout = _layout(self._bounds, self._classes, num_heads, self._device)
            self._layouts[num_heads] = layout
        return self._layouts[num_heads]


def length_class(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Round lengths up to half octaves, above 128 to quarters, above 256 to eighths of one."""
    octave = np.exp2(np.ceil(np.log2(np.maximum(lengths, 1))) - 1).astype(np.int64)
    parts = np.where(octave >= 256, 8, np.where(octave >= 128, 4, 2))
    step = np.maximum(octave // parts, 1)
    rounded: npt.NDArray[np.int64] = -(-lengths // step) * step
    return rounded


@dataclass(frozen=True, slots=True)
class _Class:
    length: int
    starts: npt.NDArray[np.int64]  # [B] first row of each sequence
    lengths: npt.NDArray[np.int64]  # [B] own length of each, at most `length`


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the rows of [T * H, K] stand in the classes' tensors, laid end to end."""

    shapes: tuple[tuple[int, int, int], ...]  # (B, H, L) of each class
    pick: Tensor  # [sum of B * H * L] row of [T * H] for each place
    place: Tensor  # [rows * H] place of each row; rows beyond have none
    pads: Tensor  # places that hold a repeated last token


def _classes(bounds: npt.NDArray[np.int64]) -> list[_Class]:
    lengths = np.diff(bounds)
    padded = length_class(lengths)
    return [
        _Class(int(length), bounds[:-1][padded == length], lengths[padded == length])
        for length in np.unique(padded[lengths > 0])
    ]


def _layout(
    bounds: npt.NDArray[np.int64], classes: list[_Class], num_heads: int, device: torch.device | str
) -> _Layout:
    heads = np.arange(num_heads)[:, None]
    place = np.empty((int(bounds[-1]), num_heads), dtype=np.int64)
    picks, pads, shapes, offset = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [], 0
    for part in classes:
        steps = np.arange(part.length)
        own = np.broadcast_to(
            (steps < part.lengths[:, None])[:, None], (len(part.starts), num_heads, part.length)
        )
        rows_BL = part.starts[:, None] + np.minimum(steps, part.lengths[:, None] - 1)
        rows_BHL = np.broadcast_to(rows_BL[:, None], own.shape)
        places_BHL = offset + np.arange(own.size).reshape(own.shape)
        place[rows_BHL[own], np.broadcast_to(heads, own.shape)[own]] = places_BHL[own]
        picks.append((rows_BHL * num_heads + heads).ravel())
        pads.append(places_BHL[~own])
        shapes.append((len(part.starts), num_heads, part.length))
        offset += own.size
    pick, pad = (torch.from_numpy(np.concatenate(parts)).to(device) for parts in (picks, pads))
    return _Layout(tuple(shapes), pick, torch.from_numpy(place.ravel()).to(device), pad)


def _causal_mask(length: int, repeats: int, dtype: torch.dtype) -> Tensor:
    """Zero where query l, of any of the repeated heads, sees key m <= l; else minus infinity."""
    return torch.full((length, length), float("-inf"), dtype=dtype).triu_(1).repeat(repeats, 1)


class _Gather(torch.autograd.Function):
    """Rows [T, H, K] into one [B, H, L, K] per class; pads repeat the last row of their own."""

    @staticmethod
    def forward(ctx: Any, x_THK: Tensor, layout: _Layout) -> tuple[Tensor, ...]:
        ctx.layout, ctx.num_rows = layout, x_THK.shape[0]
        return _to_classes(x_THK, layout)

    @staticmethod
    def backward(ctx: Any, *dx_BHLK: Tensor) -> tuple[Tensor, None]:
        """Pads come after every query that has a gradient, so their own is zero and is left."""
        return _to_rows(dx_BHLK, ctx.layout, ctx.num_rows), None


class _Scatter(torch.autograd.Function):
    """The classes' results back into rows [T, H, K]; `like` gives the number of rows."""

    @staticmethod
    def forward(ctx: Any, layout: _Layout, like: Tensor, *x_BHLK: Tensor) -> Tensor:
        ctx.layout = layout
        if not x_BHLK:
            return torch.zeros_like(like)
        return _to_rows(x_BHLK, layout, like.shape[0])

    @staticmethod
    def backward(ctx: Any, dx_THK: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *_to_classes(dx_THK, ctx.layout, pads_are_zero=True)


def _to_classes(x_THK: Tensor, layout: _Layout, pads_are_zero: bool = False) -> tuple[Tensor, ...]:
    head_dim = x_THK.shape[-1]
    flat = x_THK.reshape(-1, head_dim).index_select(0, layout.pick)
    if pads_are_zero and layout.pads.numel():
        flat.index_fill_(0, layout.pads, 0)
    sizes = [batch * heads * length for batch, heads, length in layout.shapes]
    parts = torch.split(flat, sizes) if sizes else ()
    return tuple(
        part.view(*shape, head_dim) for part, shape in zip(parts, layout.shapes, strict=True)
    )


def _to_rows(x_BHLK: tuple[Tensor, ...], layout: _Layout, num_rows: int) -> Tensor:
    num_heads, head_dim = layout.shapes[0][1], x_BHLK[0].shape[-1]
    parts = [part.reshape(-1, head_dim) for part in x_BHLK]
    flat = parts[0] if len(parts) == 1 else torch.cat(parts)
    out = flat.new_empty(num_rows * num_heads, head_dim)
    torch.index_select(flat, 0, layout.place, out=out[: len(layout.place)])
    out[len(layout.place) :].zero_()
    return out.view(num_rows, num_heads, head_dim)


class _Explicit(torch.autograd.Function):
    """Attention of one class by batched products; the R heads of a key head share its product."""

    @staticmethod
    def forward(ctx: Any, q_BHLK: Tensor, k_BGLK: Tensor, v_BGLK: Tensor, mask: Tensor) -> Tensor:
        k, v = k_BGLK.flatten(0, 1), v_BGLK.flatten(0, 1)
        q = q_BHLK.reshape(k.shape[0], -1, k.shape[2])
        scores = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=q.shape[-1] ** -0.5)
        weights = torch.softmax(scores, dim=-1)
        ctx.save_for_backward(q, k, v, weights)
        return torch.bmm(weights, v).view(q_BHLK.shape)

    @staticmethod
    def backward(ctx: Any, dout_BHLK: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, weights = ctx.saved_tensors
        dout = dout_BHLK.reshape(q.shape)
        dv = torch.bmm(weights.transpose(1, 2), dout)
        dweights = torch.bmm(dout, v.transpose(1, 2))
        dscores = torch._softmax_backward_data(dweights, weights, -1, weights.dtype)
        dscores.mul_(q.shape[-1] ** -0.5)
        dq, dk = torch.bmm(dscores, k), torch.bmm(dscores.transpose(1, 2), q)
        split = (dout_BHLK.shape[0], -1, *k.shape[1:])
        return dq.view(dout_BHLK.shape), dk.view(split), dv.view(split), None
