"""Factors by which a learning rate changes over the steps of a run.

Each is a pure function of a step, from 0 to num_steps - 1, and of the number of steps; products
combine them:

    rate = peak * schedules.warmup(step, 10) * schedules.cosine(step, 200)
    training.optim_step(AdamParams(learning_rate=rate))
"""

from math import cos, pi

from .errors import BadRequest


def constant(step: int, num_steps: int) -> float:
    """1 at every step."""
    _check_step(step, num_steps)
    return 1.0


def linear(step: int, num_steps: int, *, floor: float = 0.0) -> float:
    """1 at step 0, falling by equal amounts towards `floor`, which the step after the last has."""
    _check_step(step, num_steps)
    return _above(floor, 1 - step / num_steps)


def cosine(step: int, num_steps: int, *, floor: float = 0.0) -> float:
    """1 at step 0, falling by half a cosine towards `floor`, which the step after the last has.

    Source: Loshchilov and Hutter, "SGDR", 2017, equation 5, https://arxiv.org/abs/1608.03983.
    """
    _check_step(step, num_steps)
    return _above(floor, (1 + cos(pi * step / num_steps)) / 2)


def warmup(step: int, num_steps: int) -> float:
    """Rise by equal amounts to 1, which step num_steps - 1 and all after it have.

    Args:
        step: 0 or more; it may lie beyond the warm-up.
        num_steps: of the warm-up; 0 for none.
    """
    if step < 0 or num_steps < 0:
        raise BadRequest(f"step {step} of a warm-up of {num_steps} steps")
    return min(1.0, (step + 1) / num_steps) if num_steps else 1.0


def _above(floor: float, factor: float) -> float:
    if not 0 <= floor <= 1:
        raise BadRequest(f"floor is {floor!r}, not a number from 0 to 1")
    return floor + (1 - floor) * factor


def _check_step(step: int, num_steps: int) -> None:
    if not 0 <= step < num_steps:
        raise BadRequest(f"step is {step}, not from 0 to {num_steps - 1}")
