"""What kind of failure an exception of a step is."""

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or host allocation failed."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
