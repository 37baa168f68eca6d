"""Schedules are pure factors that combine by products."""

from collections.abc import Callable

import pytest

from weft.client import BadRequest
from weft.client.schedules import constant, cosine, linear, warmup


def factors(schedule: Callable[..., float], num_steps: int, **options: float) -> list[float]:
    return [schedule(step, num_steps, **options) for step in range(num_steps)]


def test_constant_never_changes() -> None:
    assert factors(constant, 3) == [1, 1, 1]


def test_linear_falls_by_equal_amounts() -> None:
    assert factors(linear, 4) == [1, 0.75, 0.5, 0.25]
    assert factors(linear, 4, floor=0.2) == pytest.approx([1, 0.8, 0.6, 0.4])


def test_cosine_falls_slowly_then_fast_then_slowly() -> None:
    assert factors(cosine, 4) == pytest.approx([1, 0.853553, 0.5, 0.146447], abs=1e-6)
    assert factors(cosine, 2, floor=0.5) == pytest.approx([1, 0.75])


def test_warmup_rises_to_one_and_stays() -> None:
    assert [warmup(step, 4) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert warmup(0, 0) == 1


@pytest.mark.parametrize("schedule", [constant, linear, cosine])
@pytest.mark.parametrize("step", [-1, 3])
def test_a_step_outside_the_run_is_refused(schedule: Callable[..., float], step: int) -> None:
    with pytest.raises(BadRequest, match=f"step is {step}, not from 0 to 2"):
        schedule(step, 3)


def test_a_floor_that_is_no_share_and_a_negative_warmup_are_refused() -> None:
    with pytest.raises(BadRequest, match="floor is 2"):
        linear(0, 3, floor=2)
    with pytest.raises(BadRequest, match="step -1"):
        warmup(-1, 3)
