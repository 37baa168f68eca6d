"""Norms and AdamW steps of many adapters in one flat state."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from weft.kernels.adam import AdamSettings, AdamTensors
from weft.kernels.gpu import optimizer
from weft.kernels.gpu.optimizer import PIECE, adamw_, norms
from weft.kernels.gpu.variants import UnknownVariant, Variant
from weft.kernels.reference import AdamState, adamw

SIZES = (16, 2 * PIECE, PIECE + 16, 4080)
SETTINGS = (
    AdamSettings(learning_rate=1e-2, beta1=0.9, beta2=0.95, eps=1e-12, weight_decay=0.0),
    AdamSettings(learning_rate=1e-1, beta1=0.5, beta2=0.99, eps=1e-3, weight_decay=0.4),
    AdamSettings(learning_rate=3e-4, beta1=0.0, beta2=0.999, eps=1e-8, weight_decay=0.1),
    AdamSettings(learning_rate=0.0, beta1=0.9, beta2=0.5, eps=1e-6, weight_decay=0.2),
)
STEPS = (1, 2, 700, 3)
SCALES = (1.0, 0.25, 1.0, 3e-3)


@dataclass
class Case:
    """A state of four planes, surrounded by NaN, and new weights that are NaN."""

    state: Tensor
    weights: Tensor
    items: list[AdamTensors]
    versions: list[Tensor]

    def part(self, name: str, index: int) -> Tensor:
        """What an adapter has, on the host."""
        part: Tensor = (
            self.versions[index] if name == "version" else getattr(self.items[index], name)
        )
        return part.cpu()


def make_case(
    device: torch.device, members: tuple[int, ...], dtype: torch.dtype = torch.bfloat16
) -> Case:
    """Adapters with these indices side by side; the numbers of each depend on its index alone."""
    total = sum(SIZES[index] + 32 for index in members)
    state = torch.full((4, total), float("nan"), device=device)
    weights = torch.full((total,), float("nan"), dtype=dtype, device=device)
    case, start = Case(state, weights, [], []), 16
    for index in members:
        size, generator = SIZES[index], torch.Generator().manual_seed(index)
        values = torch.randn(4, size, generator=generator)
        values[3].square_()
        weight, gradient, moment1, moment2 = state[:, start : start + size].copy_(values)
        case.items.append(
            AdamTensors(weight, gradient, moment1, moment2, STEPS[index], SCALES[index])
        )
        case.versions.append(weights[start : start + size])
        start += size + 32
    return case


def take_step(case: Case, members: tuple[int, ...]) -> list[int]:
    settings = [SETTINGS[index] for index in members]
    is_finite: list[int] = adamw_(case.items, case.versions, settings).tolist()
    return is_finite


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the variants that are launched from now on."""
    names: list[str] = []
    launch = Variant.launch

    def count(self: Variant, grid: tuple[int, ...], **arguments: Any) -> None:
        names.append(self.name)
        launch(self, grid, **arguments)

    monkeypatch.setattr(Variant, "launch", count)
    return names


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_adapter_steps_by_its_own_numbers(device: torch.device, dtype: torch.dtype) -> None:
    members = (0, 1, 2, 3)
    case, before = (make_case(device, members, dtype) for _ in range(2))
    assert take_step(case, members) == [1] * 4
    for index in members:
        old = [before.part(name, index) for name in ("weight", "gradient", "moment1", "moment2")]
        gradient = old[1].double() * SCALES[index]
        state = AdamState(old[0], old[2], old[3], STEPS[index] - 1)
        settings = SETTINGS[index]
        fields = {name: getattr(settings, name) for name in AdamSettings.__slots__}
        expected = adamw(state, gradient, **fields)
        # Numbers of order 1 after at most ten float32 roundings, each within 6e-8.
        for name in ("weight", "moment1", "moment2"):
            found = case.part(name, index).double()
            torch.testing.assert_close(found, getattr(expected, name), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_new_weights_are_the_master_rounded_to_even(
    device: torch.device, dtype: torch.dtype
) -> None:
    case = make_case(device, (2, 0), dtype)
    take_step(case, (2, 0))
    for index in range(2):
        assert torch.equal(case.part("version", index), case.part("weight", index).to(dtype))


def test_nothing_but_the_ranges_is_touched_and_gradients_are_only_read(
    device: torch.device,
) -> None:
    case, before = (make_case(device, (0, 2)) for _ in range(2))
    take_step(case, (0, 2))
    for index in range(2):
        assert torch.equal(case.part("gradient", index), before.part("gradient", index))
    assert torch.equal(case.state.isnan(), before.state.isnan())
    assert int(case.weights.isnan().sum()) == 2 * 32


def test_bits_of_an_adapter_do_not_depend_on_its_neighbours(device: torch.device) -> None:
    together = make_case(device, (3, 2, 0, 1))
    all_norms = norms([item.gradient for item in together.items])
    take_step(together, (3, 2, 0, 1))
    for place, index in enumerate((3, 2, 0)):
        alone = make_case(device, (index,))
        assert torch.equal(norms([alone.items[0].gradient])[0], all_norms[place])
        take_step(alone, (index,))
        for name in ("weight", "moment1", "moment2", "version"):
            assert torch.equal(alone.part(name, 0), together.part(name, place))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_neighbour_is_told_of_and_harms_nobody(device: torch.device, value: float) -> None:
    members = (1, 0, 2)
    case, clean = (make_case(device, members) for _ in range(2))
    case.items[0].gradient[PIECE + 5] = value
    case.items[1].weight[3] = 3.4e38  # finite, but not in bfloat16
    assert take_step(case, members) == [0, 0, 1]
    assert take_step(clean, members) == [1, 1, 1]
    assert torch.equal(case.part("weight", 2), clean.part("weight", 2))


def test_a_rate_beyond_float32_breaks_its_own_adapter(device: torch.device) -> None:
    case = make_case(device, (0, 0))
    wild = AdamSettings(learning_rate=1e30, beta1=0.9, beta2=0.95, eps=1e-12, weight_decay=1e30)
    assert adamw_(case.items, case.versions, [SETTINGS[0], wild]).tolist() == [1, 0]


def test_norms_equal_the_oracle_over_empty_small_and_large_ranges(device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(5 * PIECE, generator=generator)
    places = ((32, 48), (0, 0), (PIECE, 4 * PIECE + 48), (16, 4112))
    flat_ = flat.to(device)
    found = norms([flat_[first:last] for first, last in places]).cpu().double()
    expected = [flat[first:last].double().norm() for first, last in places]
    # A square passes through at most 20 float32 additions, each within 6e-8, and the root halves it.
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-6, atol=0)


def test_the_sums_of_any_number_of_pieces_are_added(device: torch.device) -> None:
    partials = torch.rand(2500, generator=torch.Generator().manual_seed(0))
    records = torch.zeros(2, optimizer.RECORD_WIDTH.value, dtype=torch.int32)
    records[:, optimizer.FIRST_PROGRAM.value] = torch.tensor([7, 0])
    records[:, optimizer.NUM_PROGRAMS.value] = torch.tensor([2493, 1024])
    found = torch.full((2,), float("nan"), device=device)
    optimizer._norms_variant().launch(
        (2,), partials_ptr=partials.to(device), records_ptr=records.to(device), norms_ptr=found
    )
    expected = torch.stack([partials[7:].double().sum(), partials[:1024].double().sum()]).sqrt()
    torch.testing.assert_close(found.cpu().double(), expected, rtol=1e-6, atol=0)  # as above


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e20])
def test_a_norm_is_finite_unless_an_element_or_the_sum_is_not(
    device: torch.device, value: float
) -> None:
    flat = torch.zeros(3 * PIECE, device=device)
    flat[2 * PIECE + 100] = value
    flat[0] = 1e19
    bad, good = norms([flat[PIECE:], flat[:PIECE]]).tolist()
    assert not bad < float("inf")
    assert good == pytest.approx(1e19, rel=1e-6)


def test_launches_do_not_grow_with_the_number_of_adapters(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = counted(monkeypatch)
    case = make_case(device, (0,) * 64)
    norms([item.gradient for item in case.items])
    take_step(case, (0,) * 64)
    assert names == ["norm partials fp32", "norms fp32", "adamw bf16"]


def test_what_could_not_be_read_in_wide_words_is_refused(device: torch.device) -> None:
    flat = torch.zeros(64, device=device)
    for view in (flat[8:24], flat[:17]):
        with pytest.raises(ValueError, match="multiples of 16"):
            norms([view])
    for views in ([flat[::2]], [flat[:16], flat[:16].clone()], [flat.half()]):
        with pytest.raises(ValueError, match="not flat views of one tensor"):
            norms(views)


def test_an_unknown_type_of_weights_and_unequal_sizes_are_refused(device: torch.device) -> None:
    case = make_case(device, (0, 3))
    with pytest.raises(UnknownVariant, match="float16"):
        adamw_(case.items, [version.half() for version in case.versions], SETTINGS[:2])
    with pytest.raises(ValueError, match="differ in size"):
        adamw_(case.items, case.versions[::-1], SETTINGS[:2])
