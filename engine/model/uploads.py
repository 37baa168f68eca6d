"""Arrays of the host as tensors on the device, without waiting for it."""

import numpy as np
import torch
from torch import Tensor


def upload(values: np.ndarray, device: torch.device | str) -> Tensor:
    """Return the values on the device; on a CPU the same memory.

    The host goes on at once: from memory that is not pinned, a copy waits for all that was launched
    before it, and the device then waits for the host. The values may be changed afterwards where
    the device is no CPU.
    """
    tensor = torch.from_numpy(values)
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
