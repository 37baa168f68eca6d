"""The repair of Triton's interpreter, which the tests of all kernels stand on."""

import interpreter
import pytest
import torch
import triton
import triton.language as tl


@triton.jit
def _product_kernel(a_ptr, b_ptr, c_ptr, N: tl.constexpr):
    rows = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    acc = tl.dot(tl.load(a_ptr + rows), tl.load(b_ptr + rows))
    tl.store(c_ptr + rows, acc.to(tl.bfloat16))


@triton.jit
def _sum_kernel(a_ptr, b_ptr, N: tl.constexpr):
    a = tl.load(a_ptr + tl.arange(0, N))
    tl.store(b_ptr + tl.arange(0, N), a + a)


def test_products_of_bfloat16_are_those_of_its_numbers_rounded_to_even(
    device: torch.device,
) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(64, 64, generator=generator).bfloat16().to(device) for _ in range(2))
    c = torch.full_like(a, float("nan"))
    _product_kernel[(1,)](a, b, c, N=64, enable_fp_fusion=True)
    exact = a.cpu().double() @ b.cpu().double()
    error = (c.cpu().double() - exact).abs()
    assert (error <= exact.abs() * 2**-8 + 1e-6).all()  # half a unit in the last place


@pytest.mark.skipif(not interpreter.IS_INTERPRETED, reason="a GPU adds them")
def test_arithmetic_on_bfloat16_is_refused() -> None:
    a = torch.ones(16, dtype=torch.bfloat16)
    with pytest.raises(Exception, match="widen to float32 first"):
        _sum_kernel[(1,)](a, torch.empty_like(a), N=16)
