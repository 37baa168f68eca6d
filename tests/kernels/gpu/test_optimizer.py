"""Norms and AdamW steps of many adapters in one flat state."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from weft.kernels.adam import AdamSettings
from weft.kernels.gpu import optimizer
from weft.kernels.gpu.optimizer import PIECE, AdamRange, adamw_, norms
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
    ranges: list[AdamRange]

    def part(self, name: str, index: int) -> Tensor:
        """A range of one plane, on the host."""
        one = self.ranges[index]
        flat = self.weights if name == "version" else self.state
        return flat[getattr(one, name) :][: one.size].cpu()


def make_case(
    device: torch.device, members: tuple[int, ...], dtype: torch.dtype = torch.bfloat16
) -> Case:
    """Adapters with these indices side by side; the numbers of each depend on its index alone."""
    total = sum(SIZES[index] + 32 for index in members)
    state = torch.full((4 * total,), float("nan"))
    ranges, start = [], 16
    for index in members:
        generator = torch.Generator().manual_seed(index)
        size = SIZES[index]
        places = [plane * total + start for plane in range(4)]
        for plane, place in enumerate(places):
            values = torch.randn(size, generator=generator)
            state[place : place + size] = values.square() if plane == 3 else values
        weight, gradient, moment1, moment2 = places
        ranges.append(
            AdamRange(weight, gradient, moment1, moment2, start, size, STEPS[index], SCALES[index])
        )
        start += size + 32
    weights = torch.full((total,), float("nan"), dtype=dtype)
    return Case(state.to(device), weights.to(device), ranges)


def take_step(case: Case, members: tuple[int, ...]) -> list[bool]:
    settings = [SETTINGS[index] for index in members]
    is_finite: list[bool] = adamw_(case.state, case.weights, case.ranges, settings).tolist()
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
    assert take_step(case, members) == [True] * 4
    for index in members:
        old = [before.part(name, index) for name in ("weight", "gradient", "moment1", "moment2")]
        gradient = old[1].double() * SCALES[index]
        state = AdamState(old[0], old[2], old[3], STEPS[index] - 1)
        settings = SETTINGS[index]
        fields = {name: getattr(settings, name) for name in AdamSettings.__slots__}
        expected = adamw(state, gradient, **fields)
        # Six float32 roundings a result, numbers of order 1; step 700 amplifies none of them.
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
    starts, sizes = [r.gradient for r in together.ranges], [r.size for r in together.ranges]
    all_norms = norms(together.state, starts, sizes).cpu()
    take_step(together, (3, 2, 0, 1))
    for place, index in enumerate((3, 2, 0)):
        alone = make_case(device, (index,))
        one = alone.ranges[0]
        assert torch.equal(
            norms(alone.state, [one.gradient], [one.size]).cpu()[0], all_norms[place]
        )
        take_step(alone, (index,))
        for name in ("weight", "moment1", "moment2", "version"):
            assert torch.equal(alone.part(name, 0), together.part(name, place))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_neighbour_is_told_of_and_harms_nobody(device: torch.device, value: float) -> None:
    members = (1, 0, 2)
    case, clean = (make_case(device, members) for _ in range(2))
    case.state[case.ranges[0].gradient + PIECE + 5] = value
    case.state[case.ranges[1].weight + 3] = 3.4e38  # finite, but not in bfloat16
    assert take_step(case, members) == [False, False, True]
    assert take_step(clean, members) == [True, True, True]
    assert torch.equal(case.part("weight", 2), clean.part("weight", 2))


def test_a_rate_beyond_float32_breaks_its_own_adapter(device: torch.device) -> None:
    case = make_case(device, (0, 0))
    wild = AdamSettings(learning_rate=1e30, beta1=0.9, beta2=0.95, eps=1e-12, weight_decay=1e30)
    assert adamw_(case.state, case.weights, case.ranges, [SETTINGS[0], wild]).tolist() == [
        True,
        False,
    ]


def test_norms_equal_the_oracle_over_empty_small_and_large_ranges(device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(5 * PIECE, generator=generator)
    starts, sizes = [32, 0, PIECE, 16], [16, 0, 3 * PIECE + 48, 4096]
    found = norms(flat.to(device), starts, sizes).cpu().double()
    expected = [flat[a : a + n].double().norm() for a, n in zip(starts, sizes, strict=True)]
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
    bad, good = norms(flat, [PIECE, 0], [2 * PIECE, PIECE]).tolist()
    assert not bad < float("inf")
    assert good == pytest.approx(1e19, rel=1e-6)


def test_launches_do_not_grow_with_the_number_of_adapters(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = counted(monkeypatch)
    case = make_case(device, (0,) * 64)
    norms(case.state, [r.gradient for r in case.ranges], [r.size for r in case.ranges])
    take_step(case, (0,) * 64)
    assert names == ["norm partials fp32", "norms fp32", "adamw bf16"]


def test_no_adapter_is_no_work(device: torch.device) -> None:
    flat = torch.zeros(16, device=device)
    assert norms(flat, [], []).tolist() == []
    assert adamw_(flat, flat.clone(), [], []).tolist() == []


def test_what_would_not_be_read_in_wide_words_is_refused(device: torch.device) -> None:
    flat = torch.zeros(64, device=device)
    with pytest.raises(ValueError, match="multiples of 16"):
        norms(flat, [8], [16])
    with pytest.raises(ValueError, match="multiples of 16"):
        norms(flat, [16], [17])
    with pytest.raises(ValueError, match="contiguous"):
        norms(flat[::2], [0], [16])
    with pytest.raises(UnknownVariant, match="float16"):
        adamw_(flat, flat.half(), [], [])
