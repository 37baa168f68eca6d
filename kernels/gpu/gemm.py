"""Products with frozen weights whose rows have the same bits in any company.

One kernel serves the forward pass, the gradient of the input, and both with adapters inside
(`gemm_lora.py`). The sum over K is never split: every element is one chain of products in ascending
K. How many rows there are, and where one stands, decides which program computes it and nothing
else. Widths are arguments, so that a few compiled forms serve every layer of every model.
T rows, D input features, O output features; in the kernel K is summed over and N remains.
"""

from typing import Any

from torch import Tensor

from .gemm_kernel import all_variants, blocks_of, gemm_variant, is_even

__all__ = ["all_variants", "input_gradient", "linear"]

MAX_STRIDE = 1 << 23  # elements: places inside a tile fit 32 bits


def linear(
    x_TD: Tensor,
    weight_OD: Tensor,
    out: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    accumulate: bool = False,
) -> Tensor:
    """Apply a frozen linear layer: y (+)= x W^T + bias.

    Sums in float32, the bias and what `out` held with them, rounded once.

    Args:
        x_TD: [T, D], bfloat16 or float32; rows may lie apart, elements of a row may not.
        weight_OD: [O, D], contiguous.
        out: [T, O], rows may lie apart; default a new tensor.
        bias: [O].
        accumulate: add to what `out` holds.

    Raises:
        ValueError: a shape, dtype or layout differs from the above.
    """
    return _product(x_TD, weight_OD, out, bias, is_forward=True, accumulate=accumulate)


def input_gradient(
    dy_TO: Tensor, weight_OD: Tensor, out: Tensor | None = None, *, accumulate: bool = False
) -> Tensor:
    """Gradient of the input of a frozen linear layer: dx (+)= dy W. Arguments as of `linear`."""
    return _product(dy_TO, weight_OD, out, None, is_forward=False, accumulate=accumulate)


def _product(
    x: Tensor,
    weight_OD: Tensor,
    out: Tensor | None,
    bias: Tensor | None,
    *,
    is_forward: bool,
    accumulate: bool,
) -> Tensor:
    y = output_of(x, weight_OD, out, bias, is_forward=is_forward, accumulate=accumulate)
    blocks = blocks_of(x.dtype)
    is_narrow = 0 < len(x) <= blocks.few_rows
    height = blocks.heights[0 if is_narrow else -1]
    form = gemm_variant(
        x.dtype,
        height,
        is_forward=is_forward,
        is_even=is_even(x.dtype, x.shape[1], y.shape[1], is_narrow=is_narrow),
        has_bias=bias is not None,
        accumulate=accumulate,
        is_narrow=is_narrow,
    )
    grid = grid_of(-(-len(x) // height), y, is_narrow=is_narrow)
    form.launch(grid, **arguments_of(x, weight_OD, bias, y))
    return y


def grid_of(num_tiles: int, y: Tensor, *, is_narrow: bool = False) -> tuple[int]:
    """Programs for so many tiles of rows."""
    return (num_tiles * -(-y.shape[1] // blocks_of(y.dtype).width(is_narrow)),)


def output_of(
    x: Tensor,
    weight_OD: Tensor,
    out: Tensor | None,
    bias: Tensor | None,
    *,
    is_forward: bool,
    accumulate: bool,
) -> Tensor:
    """The tensor to write: `out`, or a new one. Refuses what the kernel does not take."""
    width_n, width_k = weight_OD.shape if is_forward else weight_OD.shape[::-1]
    if out is None:
        if accumulate:
            raise ValueError("accumulate needs an out tensor")
        out = x.new_empty(len(x), width_n)
    if x.shape[1] != width_k or out.shape != (len(x), width_n):
        shapes = tuple(x.shape), tuple(weight_OD.shape), tuple(out.shape)
        raise ValueError(f"shapes {shapes} do not fit as input, weight and output")
    if bias is not None and (bias.shape != (width_n,) or not bias.is_contiguous()):
        raise ValueError(f"a bias of {width_n} contiguous elements, not {tuple(bias.shape)}")
    if not weight_OD.is_contiguous() or any(
        tensor.stride(1) != 1 and tensor.shape[1] > 1 for tensor in (x, out)
    ):
        strides = x.stride(), weight_OD.stride(), out.stride()
        raise ValueError(f"strides {strides}: weights and elements of rows must be contiguous")
    if max(width_k, width_n, x.stride(0), out.stride(0)) > MAX_STRIDE:
        raise ValueError(f"rows more than {MAX_STRIDE} elements apart")
    for tensor in (weight_OD, out, bias):
        if tensor is not None and tensor.dtype != x.dtype:
            raise ValueError(f"{tensor.dtype} with rows of {x.dtype}")
    return out


def arguments_of(x: Tensor, weight_OD: Tensor, bias: Tensor | None, y: Tensor) -> dict[str, Any]:
    """What a launch without adapters takes."""
    return {
        "x_ptr": x,
        "weight_ptr": weight_OD,
        **({} if bias is None else {"bias_ptr": bias}),
        "y_ptr": y,
        "num_rows": len(x),
        "width_k": x.shape[1],
        "width_n": y.shape[1],
        "stride_xt": x.stride(0),
        "stride_yt": y.stride(0),
        **dict.fromkeys(("site", "half", "num_sites", "num_summed", "s_units"), 0),
        "granule_units": 0,
        "pitch": 0,
    }
