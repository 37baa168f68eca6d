"""Attention over packed sequences, handed to the decoder from outside.

T tokens, N sequences; H query heads, G key and value heads, R = H / G, K head width. In one length
class B sequences of padded length L stand as C = B * G key heads, each with its M = L * R query
rows, token by token.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .attention_form import AttentionForm, attend_formed
from .causal import attend_causal
from .exact_attention import ROWS


class Attention(Protocol):
    """Which tokens see which keys; the same for training, prefill and decode."""

    def attend(
        self,
        layer: int,
        q_THK: Tensor,
        k_TGK: Tensor,
        v_TGK: Tensor,
        form: AttentionForm | None = None,
    ) -> Tensor:
        """Return softmax(scale q k^T) v, [T, H, K], for the new tokens of this forward pass.

        Keys already carry their positions; query head h reads key head h // (H // G). Without a
        form the scale is K ** -0.5 and every key up to the query's own counts.
        """


class PackedAttention:
    """Causal attention inside each of N packed sequences; differentiable, keeps no keys.

    Sequences are grouped by a length class that depends on their own length alone, and padded
    with their own last token: the number of operations follows the classes, never the sequences,
    and neither bits nor NaN of one sequence reach another.

    Args:
        cu_seqlens: bounds [N + 1], from 0, non-decreasing. Rows beyond the last bound are padding
            of the batch: their output and gradient are zero.
        is_deterministic: on a CPU a row's output has the bits that decoding gives it, too.
    """

    def __init__(
        self,
        cu_seqlens: npt.ArrayLike,
        device: torch.device | str = "cpu",
        *,
        is_deterministic: bool = False,
    ) -> None:
        bounds = np.asarray(cu_seqlens, dtype=np.int64)
        if bounds.ndim != 1 or not bounds.size or bounds[0] or (np.diff(bounds) < 0).any():
            raise ValueError("cu_seqlens is not a list of bounds from 0 that never decrease")
        self._bounds = bounds
        self._device = device
        self._is_exact = is_deterministic and torch.device(device).type == "cpu"
        self._classes = _classes(bounds, ROWS if self._is_exact else 1)
        self._layouts: dict[tuple[int, int], _Layout] = {}

    def attend(
        self,
        layer: int,
        q_THK: Tensor,
        k_TGK: Tensor,
        v_TGK: Tensor,
        form: AttentionForm | None = None,
    ) -> Tensor:
        """See `Attention.attend`; `layer` does not matter here."""
        if not self._classes:
            return torch.zeros_like(q_THK)
        num_heads, num_kv_heads = q_THK.shape[1], k_TGK.shape[1]
        layout = self._layout(num_kv_heads, num_heads // num_kv_heads)
        kv_layout = self._layout(num_kv_heads, 1)
        q_parts = _Gather.apply(q_THK, layout)  # type: ignore[no-untyped-call]
        k_parts = _Gather.apply(k_TGK, kv_layout)  # type: ignore[no-untyped-call]
        v_parts = _Gather.apply(v_TGK, kv_layout)  # type: ignore[no-untyped-call]
        mixed = [
            _attend_class(q_CMK, k_CLK, v_CLK, form, self._is_exact)
            for q_CMK, k_CLK, v_CLK in zip(q_parts, k_parts, v_parts, strict=True)
        ]
        out: Tensor = _Scatter.apply(layout, q_THK, *mixed)  # type: ignore[no-untyped-call]
        return out

    def _layout(self, num_kv_heads: int, repeats: int) -> "_Layout":
        key = num_kv_heads, repeats
        if key not in self._layouts:
            self._layouts[key] = _layout(self._bounds, self._classes, *key, self._device)
        return self._layouts[key]


def _attend_class(
    q_CMK: Tensor, k_CLK: Tensor, v_CLK: Tensor, form: AttentionForm | None, is_exact: bool
) -> Tensor:
    if form is None:
        return attend_causal(q_CMK, k_CLK, v_CLK, is_exact)
    length = k_CLK.shape[1]
    if form.is_plain(length):
        return attend_causal(form.scaled(q_CMK), k_CLK, v_CLK, is_exact)
    last_1L = torch.arange(length, device=k_CLK.device)[None]
    return attend_formed(q_CMK, k_CLK, v_CLK, last_1L, form)


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

    shapes: tuple[tuple[int, int], ...]  # (C, M) of each class
    pick: Tensor  # [sum of C * M] row of [T * H] for each place
    place: Tensor  # [rows * H] place of each row; rows beyond have none
    pads: Tensor  # places that hold a repeated last token


def _classes(bounds: npt.NDArray[np.int64], multiple: int) -> list[_Class]:
    lengths = np.diff(bounds)
    padded = -(-length_class(lengths) // multiple) * multiple
    return [
        _Class(int(length), bounds[:-1][padded == length], lengths[padded == length])
        for length in np.unique(padded[lengths > 0])
    ]


def _layout(
    bounds: npt.NDArray[np.int64],
    classes: list[_Class],
    num_kv_heads: int,
    repeats: int,
    device: torch.device | str,
) -> _Layout:
    heads_G1R = np.arange(num_kv_heads * repeats).reshape(num_kv_heads, 1, repeats)
    place = np.empty((int(bounds[-1]), num_kv_heads * repeats), dtype=np.int64)
    picks, pads, shapes, offset = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [], 0
    for part in classes:
        shape = (len(part.starts), num_kv_heads, part.length, repeats)
        steps, last_B1 = np.arange(part.length), part.lengths[:, None] - 1
        rows_BL = part.starts[:, None] + np.minimum(steps, last_B1)
        rows = np.broadcast_to(rows_BL[:, None, :, None], shape)
        heads = np.broadcast_to(heads_G1R, shape)
        own = np.broadcast_to((steps <= last_B1)[:, None, :, None], shape)
        places = offset + np.arange(own.size).reshape(shape)
        place[rows[own], heads[own]] = places[own]
        picks.append((rows * num_kv_heads * repeats + heads).ravel())
        pads.append(places[~own])
        shapes.append((len(part.starts) * num_kv_heads, part.length * repeats))
        offset += own.size
    pick, pad = (torch.from_numpy(np.concatenate(parts)).to(device) for parts in (picks, pads))
    return _Layout(tuple(shapes), pick, torch.from_numpy(place.ravel()).to(device), pad)


class _Gather(torch.autograd.Function):
    """Rows [T, H, K] into one [C, M, K] per class; pads repeat the last row of their sequence."""

    @staticmethod
    def forward(ctx: Any, x_THK: Tensor, layout: _Layout) -> tuple[Tensor, ...]:
        ctx.layout, ctx.shape = layout, x_THK.shape
        return _to_classes(x_THK, layout)

    @staticmethod
    def backward(ctx: Any, *dx_CMK: Tensor) -> tuple[Tensor, None]:
        """Pads come after every query that has a gradient, so their own is zero and is left."""
        return _to_rows(dx_CMK, ctx.layout, ctx.shape), None


class _Scatter(torch.autograd.Function):
    """The classes' results back into rows, as many as `like_THK` has."""

    @staticmethod
    def forward(ctx: Any, layout: _Layout, like_THK: Tensor, *x_CMK: Tensor) -> Tensor:
        ctx.layout = layout
        return _to_rows(x_CMK, layout, like_THK.shape)

    @staticmethod
    def backward(ctx: Any, dx_THK: Tensor) -> tuple[Tensor | None, ...]:
        dx_CMK = _to_classes(dx_THK, ctx.layout, pads_are_zero=True)
        return None, None, *dx_CMK


def _to_classes(x_THK: Tensor, layout: _Layout, pads_are_zero: bool = False) -> tuple[Tensor, ...]:
    head_dim = x_THK.shape[-1]
    flat = x_THK.reshape(-1, head_dim).index_select(0, layout.pick)
    if pads_are_zero and layout.pads.numel():
        flat.index_fill_(0, layout.pads, 0)
    parts = torch.split(flat, [keys * rows for keys, rows in layout.shapes])
    return tuple(
        part.view(*shape, head_dim) for part, shape in zip(parts, layout.shapes, strict=True)
    )


def _to_rows(x_CMK: tuple[Tensor, ...], layout: _Layout, shape: torch.Size) -> Tensor:
    parts = [part.reshape(-1, shape[-1]) for part in x_CMK]
    flat = parts[0] if len(parts) == 1 else torch.cat(parts)
    out_THK = flat.new_empty(shape)
    out = out_THK.view(-1, shape[-1])
    num_rows = len(layout.place)
    torch.index_select(flat, 0, layout.place, out=out[:num_rows])
    out[num_rows:].zero_()
    return out_THK
