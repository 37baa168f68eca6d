"""Groups of linears with many adapters: the oracle, bits in any company, and isolation."""

from dataclasses import replace

import pytest
import torch
from lora_batches import (
    NAN,
    Batch,
    Tenant,
    Unit,
    all_gradients,
    bits_of,
    exact_gradients,
    exact_group,
    make_batch,
    one_group,
    relative_error,
    run_group,
    torch_group,
)

from weft.kernels.gpu.lora import expand, expand_input, shrink, shrink_gradient, weight_gradients
from weft.kernels.layout import Layout

# float32 products are exact to 2^-24 each; sums of up to 256 of them differ in their order.
FLOAT32_ERROR = 1e-6
LAYOUT = one_group(96, 160, 48, 48)
ODD = one_group(41, 29)
R1, R3, R16, R48, R128 = (Tenant(rank, seed=rank) for rank in (1, 3, 16, 48, 128))
CASES = [
    pytest.param(LAYOUT, [(R16, 70), (None, 5), (R3, 20), (R16, 9)], 110, id="same adapter twice"),
    pytest.param(LAYOUT, [(R48, 33), (R1, 1), (R48, 0), (R128, 2)], 36, id="ragged and empty"),
    pytest.param(LAYOUT, [(R3, 0), (None, 3)], 4, id="base only"),
    pytest.param(ODD, [(R3, 7), (R16, 1)], 8, id="odd widths"),
]


def inputs(batch: Batch) -> tuple[torch.Tensor, list[torch.Tensor]]:
    shapes = batch.layout.shapes
    dys = [batch.rows(width, 1 + site) for site, (_, width) in enumerate(shapes)]
    return batch.rows(shapes[0][0]), dys


@pytest.mark.parametrize(("layout", "units", "num_rows"), CASES)
def test_a_group_equals_the_oracle_forward_and_in_every_gradient(
    device: torch.device, layout: Layout, units: list[Unit], num_rows: int
) -> None:
    batch = make_batch(layout, units, device, num_rows=num_rows)
    x, dys = inputs(batch)
    found, exact = run_group(batch, x, dys), exact_group(batch, x, dys)
    outputs = list(zip((*found.ys, found.dx), (*exact.ys, exact.dx), strict=True))
    gradients = list(zip(all_gradients(batch), exact_gradients(batch, exact), strict=True))
    assert len(gradients) == 2 * len(layout.shapes) * len({id(t) for t, n in units if t and n})
    for own, true in outputs + gradients:
        assert relative_error([own], [true + 0]) < FLOAT32_ERROR if true.any() else not own.any()


@pytest.mark.parametrize("tile_rows", [16, 64])
def test_bfloat16_errs_at_most_twice_as_much_as_pytorch(
    device: torch.device, tile_rows: int
) -> None:
    units: list[Unit] = [(R16, 70), (None, 5), (R48, 20), (R16, 9)]
    batch = make_batch(LAYOUT, units, device, torch.bfloat16, tile_rows=tile_rows)
    x, dys = inputs(batch)
    found, exact = run_group(batch, x, dys), exact_group(batch, x, dys)
    plain, plain_gradients = torch_group(batch, x, dys)
    for own, theirs, true in [
        (found.ys, plain.ys, exact.ys),
        ([found.dx], [plain.dx], [exact.dx]),
        (all_gradients(batch), plain_gradients, exact_gradients(batch, exact)),
    ]:
        assert relative_error(own, true) < 2 * relative_error(theirs, true)


@pytest.mark.parametrize("rank", [1, 3, 16, 48, 128, 256])
def test_a_tenant_has_the_same_bits_alone_in_company_shuffled_and_split(
    device: torch.device, rank: int
) -> None:
    layout = one_group(48, 32)
    own = Tenant(rank, seed=7)
    others: list[Unit] = [(R16, 3), (None, 2), (Tenant(rank, seed=8), 5)]
    batches = {
        "alone": [make_batch(layout, [(own, 70), (own, 6)], device)],
        "company": [make_batch(layout, [*others, (own, 70), (R3, 1), (own, 6)], device)],
        "shuffled": [
            make_batch(layout, [(own, 6), *others, (own, 70)], device, unit_order=[9, 0, 1, 2, 3])
        ],
    }
    first = make_batch(layout, [(R16, 3), (own, 70)], device)
    batches["split"] = [first, make_batch(layout, [(own, 6)], device, gradients=first)]
    results = {}
    for name, parts in batches.items():
        found = [(part, run_group(part, *inputs(part))) for part in parts]
        bits = [x for part, result in found for x in bits_of(part, result, own)[:-2]]
        last = bits_of(*found[-1], own)[-2:]
        results[name] = sorted(bits, key=len) + last
    for name, bits in results.items():
        for ours, alone in zip(bits, results["alone"], strict=True):
            assert torch.equal(ours, alone), name


@pytest.mark.parametrize("bad", [NAN, float("inf")])
def test_what_is_not_finite_in_one_tenant_reaches_no_other(
    device: torch.device, bad: float
) -> None:
    layout, noisy = one_group(48, 32, 16), Tenant(5, seed=1)
    units: list[Unit] = [(R3, 9), (noisy, 4), (R16, 3), (None, 2)]
    results = []
    for is_bad in (False, True):
        batch = make_batch(layout, units, device)
        x, dys = inputs(batch)
        if is_bad:
            x[9:13], dys[0][9:13] = bad, bad
            batch.matrices(noisy, batch.adapters.weights)[1][0][:, :48] = bad
        found = run_group(batch, x, dys)
        bits = [bits for tenant in (R3, R16) for bits in bits_of(batch, found, tenant)]
        results.append([*bits, *(y[16:] for y in (*found.ys, found.dx))])
        assert batch.gradient(noisy, 0, 0).isfinite().all() != is_bad
    for clean, beside in zip(*results, strict=True):
        assert clean.isfinite().all()
        assert torch.equal(clean, beside)


def test_adding_touches_only_rows_with_an_adapter_at_the_site(device: torch.device) -> None:
    layout = Layout(((48, 32), (48, 16)), ((0,), (1,)), (1, 2))
    both, first = Tenant(3, mask=3, seed=1), Tenant(16, mask=1, seed=2)
    batch = make_batch(layout, [(both, 2), (first, 3), (None, 2)], device, num_rows=8)
    x = batch.rows(48)
    for site, num_changed in ((0, 5), (1, 2)):
        s = shrink(x, batch.adapters, [site])
        added = torch.zeros(8, layout.shapes[site][1], device=device)
        added[num_changed:] = NAN
        written = torch.full_like(added, NAN)
        expand(s, batch.adapters, [site], [added], accumulate=True)
        expand(s, batch.adapters, [site], [written], accumulate=False)
        assert added[:num_changed].all()
        assert added[num_changed:].isnan().all()
        assert torch.equal(added[:num_changed], written[:num_changed])
        assert not written[num_changed:].any()


def test_adding_starts_from_what_is_there(device: torch.device) -> None:
    batch = make_batch(one_group(48, 32), [(R3, 5), (R16, 3)], device)
    x, (dy,) = inputs(batch)
    found = run_group(batch, x, [dy])
    y, dx = dy.clone(), x.clone()
    expand(found.s, batch.adapters, batch.sites, [y], accumulate=True)
    expand_input(found.ds, batch.adapters, batch.sites, dx, accumulate=True)
    torch.testing.assert_close(y, found.ys[0] + dy)
    torch.testing.assert_close(dx, found.dx + x)


def test_outputs_without_gradient_add_zeros(device: torch.device) -> None:
    batch = make_batch(one_group(48, 32, 16), [(R3, 5), (R16, 3)], device)
    x, dys = inputs(batch)
    given = [None, dys[1]]
    found, exact = run_group(batch, x, given), exact_group(batch, x, given)
    assert relative_error([found.dx], [exact.dx]) < FLOAT32_ERROR
    for tenant in (R3, R16):
        assert not batch.gradient(tenant, 0, 0).any()
        assert not batch.gradient(tenant, 0, 1).any()
        assert batch.gradient(tenant, 1, 0).all()


def test_tensors_that_do_not_fit_are_refused(device: torch.device) -> None:
    batch = make_batch(one_group(48, 32), [(R3, 5)], device)
    adapters, x = batch.adapters, batch.rows(48)
    with pytest.raises(ValueError, match=r"contiguous rows \(5, 48\), not \(5, 47\)"):
        shrink(x[:, :47], adapters, [0])
    with pytest.raises(ValueError, match="strides"):
        shrink(x.t().contiguous().t(), adapters, [0])
    with pytest.raises(ValueError, match=r"rows of torch\.bfloat16, adapters of torch\.float32"):
        shrink(x.bfloat16(), adapters, [0])
    with pytest.raises(ValueError, match="neighbours"):
        shrink_gradient([x, x], adapters, [0, 2])
    with pytest.raises(ValueError, match="no gradient of any output"):
        shrink_gradient([None], adapters, [0])


def test_gradients_need_a_place(device: torch.device) -> None:
    batch = make_batch(one_group(48, 32), [(R3, 5)], device)
    x, dys = inputs(batch)
    s = shrink(x, batch.adapters, [0])
    blind = replace(batch.adapters, gradients=None)
    with pytest.raises(ValueError, match="no gradients to add to"):
        weight_gradients(x, dys, s, s, blind, [0])
