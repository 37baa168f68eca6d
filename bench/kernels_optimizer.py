"""The rows of `kernels.py` on optimizer steps: gradient norms and AdamW of several adapters."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from gpu_timing import Deadline, Machine, Stopwatch
from harness import Table
from layer_check import WrongResult
from torch import Tensor

from weft.kernels.adam import AdamSettings, AdamTensors, adamw_
from weft.kernels.gpu import optimizer

NUMBERS = (1, 8, 64)
ELEMENTS = 21_823_488  # of one adapter: rank 8 on all 36 layers of Qwen3-8B
STEP_BYTES = 4 + 16 + 12 + 2  # norm; read p, g, m, v; write p, m, v and the 16-bit version


class OptimizerCase:
    """Adapters side by side, each with settings of its own."""

    def __init__(self, number: int, elements: int, device: torch.device) -> None:
        self.state = torch.rand(4, number * elements, device=device)
        self.weights = torch.empty(number * elements, dtype=torch.bfloat16, device=device)
        self.versions = list(torch.split(self.weights, elements))
        self.items, self.settings = [], []
        for index in range(number):
            views: list[Tensor] = list(self.state[:, index * elements : (index + 1) * elements])
            self.items.append(AdamTensors(*views, step=index + 2))  # type: ignore[misc, arg-type]
            self.settings.append(AdamSettings(1e-4 * (1 + index), 0.9, 0.95, 1e-12, 0.01))

    def by_triton(self, index: int = 0) -> Tensor:
        """Norms, then the step; returns the norms."""
        norms = optimizer.norms([item.gradient for item in self.items])
        optimizer.adamw_(self.items, self.versions, self.settings)
        return norms

    def by_torch(self, index: int = 0) -> Tensor:
        """The same by PyTorch's operations."""
        norms = torch.stack(torch._foreach_norm([item.gradient for item in self.items]))
        adamw_(self.items, self.settings)
        torch._foreach_copy_(self.versions, [item.weight for item in self.items])
        return norms


def check_step(number: int, elements: int, device: torch.device) -> None:
    """Both forms on equal states.

    Raises:
        WrongResult: they differ by more than float32 rounding, or a version from its weights by
            more than one of bfloat16.
    """
    ours, theirs = (OptimizerCase(number, elements, device) for _ in range(2))
    theirs.state.copy_(ours.state)
    ours.weights.fill_(float("nan"))
    is_close = torch.allclose(ours.by_triton(), theirs.by_torch(), rtol=1e-5)
    is_close &= torch.allclose(ours.state, theirs.state, rtol=1e-5, atol=1e-6)
    is_close &= torch.allclose(ours.weights.float(), theirs.state[0], rtol=2**-7)
    if not is_close:
        raise WrongResult(f"optimizer step of {number} adapters differs from PyTorch's")


def measure_optimizer(
    stopwatch: Stopwatch, machine: Machine, deadline: Deadline, left_out: list[str]
) -> Iterator[dict[str, Any]]:
    """Seconds of a step, and how near it is to copying the same bytes."""
    numbers, elements = (NUMBERS, ELEMENTS) if not stopwatch.is_dry else ((1, 3), 4096)
    table = Table("adapters", "triton ms", "torch ms", "GB/s", "of copy")
    check_step(3, 4096 if stopwatch.is_dry else 1 << 20, stopwatch.device)
    for number in numbers:
        if deadline.is_over:
            left_out.append(f"optimizer of {number} adapters")
            continue
        case = OptimizerCase(number, elements, stopwatch.device)
        ours, theirs = (stopwatch.events(partial(form)) for form in (case.by_triton, case.by_torch))
        rate = number * elements * STEP_BYTES / ours.median
        share = rate / machine.copy_bytes_per_s
        cells = f"{ours.median * 1e3:.3f}", f"{theirs.median * 1e3:.3f}", f"{rate / 1e9:.0f}"
        table.row(number, *cells, f"{share:.2f}")
        yield {
            "adapters": number,
            "elements": elements,
            "triton": ours.as_dict(),
            "torch": theirs.as_dict(),
            "bytes_per_s": rate,
            "of_copy": share,
        }
