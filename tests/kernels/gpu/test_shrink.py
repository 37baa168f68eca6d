"""Projections onto rank space: the tree of their sums, however it is scheduled."""

import pytest
import torch
from lora_batches import Batch, Tenant, make_batch, one_group, projection

from weft.kernels.gpu import shrink as shrinking
from weft.kernels.gpu.lora import expand, shrink
from weft.kernels.gpu.shrink import shrink_variant, slab_of
from weft.kernels.gpu.variants import UnknownVariant

WIDTH = 2600  # three slabs, the last one shorter, and no multiple of any block
R3, R16, R48 = (Tenant(rank, seed=rank) for rank in (3, 16, 48))


def wide_batch(device: torch.device, dtype: torch.dtype, tile_rows: int = 16) -> Batch:
    units = [(R3, 17), (None, 2), (R48, 1)]
    return make_batch(one_group(WIDTH, 32), units, device, dtype, tile_rows=tile_rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_slabs_apart_have_the_bits_of_slabs_together(
    device: torch.device, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = wide_batch(device, dtype)
    x = batch.rows(WIDTH)
    apart = shrink(x, batch.adapters, [0])
    planes = shrink(x, batch.adapters, [0], is_split=True)
    monkeypatch.setattr(shrinking, "FULL_GRID", 0)
    together = shrink(x, batch.adapters, [0])
    assert planes.shape == (slab_of(WIDTH)[1], len(together))
    assert planes.dtype == torch.float32
    assert together.any()
    assert torch.equal(together, apart)
    y, y_planes = (x.new_full((20, 32), float("nan")) for _ in range(2))
    expand(together, batch.adapters, [0], [y], accumulate=False)
    expand(planes, batch.adapters, [0], [y_planes], accumulate=False)
    assert torch.equal(y, y_planes)


def test_wide_rows_equal_the_oracle(device: torch.device) -> None:
    batch = wide_batch(device, torch.float32, tile_rows=64)
    x = batch.rows(WIDTH)
    s = shrink(x, batch.adapters, [0])
    a = batch.matrices(R3, batch.adapters.weights)[0][0][:, :WIDTH]
    exact = x[:17].double() @ a.double().t() * R3.scale
    # float32 sums of 2600 products, in three slabs
    torch.testing.assert_close(projection(batch, s, 0, 0)[:, :3].double(), exact, rtol=0, atol=2e-5)


def test_columns_beyond_the_rank_are_zero_whatever_the_rows_hold(device: torch.device) -> None:
    batch = make_batch(one_group(48, 32), [(R3, 5), (R16, 3)], device)
    x = batch.rows(48)
    x[2] = float("inf")
    own = projection(batch, shrink(x, batch.adapters, [0]), 0, 0)
    assert own.shape == (5, 16)
    assert not own[2, :3].isfinite().any()
    assert not own[:, 3:].any()


def test_narrow_rows_have_no_planes(device: torch.device) -> None:
    batch = make_batch(one_group(48, 32), [(R3, 5)], device)
    assert shrink(batch.rows(48), batch.adapters, [0], is_split=True).dim() == 1


@pytest.mark.parametrize("width", [1, 48, 1024, 1025, WIDTH, 18944, 151936])
def test_slabs_cover_a_width(width: int) -> None:
    slab, count = slab_of(width)
    assert (count - 1) * slab < width <= count * slab
    assert slab % 128 == 0


def test_forms_that_do_not_exist_are_refused_by_name() -> None:
    with pytest.raises(UnknownVariant, match="rank bucket 24"):
        shrink_variant(24, 64, torch.float32, width=64, is_split=False)
    with pytest.raises(UnknownVariant, match="tiles of 32 rows"):
        shrink_variant(16, 32, torch.float32, width=64, is_split=False)
    with pytest.raises(UnknownVariant, match=r"torch\.float16"):
        shrink_variant(16, 64, torch.float16, width=64, is_split=False)
