"""Where the Triton kernels run: on a CUDA device, or in the interpreter on a CPU."""

from collections.abc import Iterator

import interpreter
import pytest
import torch


@pytest.fixture(scope="session")
def device() -> torch.device:
    return interpreter.kernel_device()


@pytest.fixture
def fresh_memory_is_nan() -> Iterator[None]:
    """What `torch.empty` gives holds NaN, so that an element that no kernel writes shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
