"""Where the Triton kernels run: on a CUDA device, or in the interpreter on a CPU."""

import interpreter
import pytest
import torch


@pytest.fixture(scope="session")
def device() -> torch.device:
    if interpreter.IS_INTERPRETED:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device("cuda")
