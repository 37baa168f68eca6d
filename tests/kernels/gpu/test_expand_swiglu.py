"""Expand and SwiGLU in one pass."""

import pytest
import torch
from lora_batches import Tenant, make_batch

from weft.kernels.gpu.lora import expand, expand_swiglu, shrink
from weft.kernels.gpu.swiglu import swiglu
from weft.kernels.layout import Layout

LAYOUT = Layout(((1100, 80), (1100, 80), (80, 16)), ((0, 1), (2,)), (1, 2))
UNITS = [(Tenant(3, seed=1), 9), (None, 2), (Tenant(130, seed=2), 3), (Tenant(16, mask=2), 4)]


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_has_the_bits_of_expand_then_swiglu(
    device: torch.device, dtype: torch.dtype, keep: bool
) -> None:
    batch = make_batch(LAYOUT, UNITS, device, dtype, num_rows=20, tile_rows=16)
    s = shrink(batch.rows(1100), batch.adapters, [0, 1], is_split=not keep)
    base = [batch.rows(80, salt) for salt in (1, 2)]
    gate, up = (y.clone() for y in base)
    h = expand_swiglu(s, batch.adapters, [0, 1], gate, up, keep=keep)
    sums = [y.clone() for y in base]
    expand(s, batch.adapters, [0, 1], sums, accumulate=True)
    assert torch.equal(h, swiglu(*sums))
    assert not torch.equal(sums[0][:9], base[0][:9])
    for found, wanted in zip((gate, up), sums if keep else base, strict=True):
        assert torch.equal(found, wanted)


def test_it_equals_the_oracle(device: torch.device) -> None:
    batch = make_batch(LAYOUT, UNITS, device, num_rows=20)
    x, base = batch.rows(1100), [batch.rows(80, salt) for salt in (1, 2)]
    s = shrink(x, batch.adapters, [0, 1])
    h = expand_swiglu(s, batch.adapters, [0, 1], *base, keep=False)
    sums = [y.double() for y in base]
    for tenant, rows in ((UNITS[0][0], slice(0, 9)), (UNITS[2][0], slice(11, 14))):
        assert tenant is not None
        for site, y in enumerate(sums):
            a, bt = batch.matrices(tenant, batch.adapters.weights.double())[site]
            y[rows] += tenant.scale * (x[rows].double() @ a[:, :1100].t()) @ bt[:, :80]
    exact = torch.nn.functional.silu(sums[0]) * sums[1]
    # float32 sums of 1100 products, times a gate
    torch.testing.assert_close(h.double(), exact, rtol=1e-5, atol=1e-4)
