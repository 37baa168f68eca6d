"""Make Triton's interpreter compute bfloat16 as a GPU does. Import it before a kernel runs.

The interpreter keeps bfloat16 as 16-bit integers. Its casts to it cut bits off where a GPU rounds
to the nearest even number, its dot multiplies the integers, and its arithmetic adds them up. The
first two are repaired here. Arithmetic on bfloat16 raises instead: kernels widen what they load to
float32 first, so that GPUs compute in float32, too. Nor does a GPU warn of infinities.
"""

import os
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


def kernel_device() -> torch.device:
    """Where kernels run: a CUDA device, or the CPU under the interpreter. Skips without either."""
    if IS_INTERPRETED:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device("cuda")


def widen(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """The float32 numbers with these upper halves."""
    return np.left_shift(bits.astype(np.uint32), 16).view(np.float32)


def narrow(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Round float32 to bfloat16, ties to even."""
    tensor = torch.from_numpy(np.ascontiguousarray(values, np.float32))
    return tensor.bfloat16().view(torch.int16).numpy().view(np.uint16)


def _product(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """A float32 product whose elements do not depend on where in the tile they stand."""
    with np.errstate(over="ignore", invalid="ignore"):  # as silent as a GPU
        product: npt.NDArray[np.float64] = np.matmul(a.astype(np.float64), b.astype(np.float64))
        return product.astype(np.float32)


def _is_bf16(handle: Any) -> bool:
    return bool(handle.dtype.scalar == tl.bfloat16)


def _repair() -> None:
    builder = interpreter.InterpreterBuilder
    plain_dot, plain_cast = builder.create_dot, builder.cast_impl
    plain_binary, plain_unary = builder.binary_op, builder.unary_op

    def create_dot(self: Any, a: Any, b: Any, d: Any, *options: Any) -> Any:
        if _is_bf16(a) and _is_bf16(b):
            product = _product(widen(a.data), widen(b.data))
        elif a.data.dtype == b.data.dtype == np.float32:
            product = _product(a.data, b.data)
        else:
            return plain_dot(self, a, b, d, *options)
        return interpreter.TensorHandle(product + d.data, d.dtype.scalar)

    def cast_impl(self: Any, source: Any, target: Any) -> Any:
        if _is_bf16(source) and target.scalar != tl.bfloat16:
            source = interpreter.TensorHandle(widen(source.data), tl.float32)
        elif target.scalar == tl.bfloat16 and not _is_bf16(source):
            return interpreter.TensorHandle(narrow(source.data), tl.bfloat16)
        return plain_cast(self, source, target)

    def create_fp_to_fp(self: Any, source: Any, target: Any, rounding: Any) -> Any:
        return cast_impl(self, source, target)

    def refuse(plain: Any) -> Any:
        def checked(self: Any, *operands: Any) -> Any:
            if any(_is_bf16(x) for x in operands if isinstance(x, interpreter.TensorHandle)):
                raise TypeError("arithmetic on bfloat16: widen to float32 first")
            return plain(self, *operands)

        return checked

    builder.create_dot, builder.cast_impl = create_dot, cast_impl
    builder.create_fp_to_fp = create_fp_to_fp
    builder.binary_op, builder.unary_op = refuse(plain_binary), refuse(plain_unary)
    for name in ("fp_ext", "fp_trunc", "si_to_fp", "ui_to_fp", "fp_to_si", "fp_to_ui"):
        setattr(builder, f"create_{name}", lambda self, s, t: cast_impl(self, s, t))
    run = interpreter.GridExecutor.__call__
    interpreter.GridExecutor.__call__ = np.errstate(all="ignore")(run)


if IS_INTERPRETED:
    _repair()
