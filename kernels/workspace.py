"""Buffers that are allocated once and grow: fresh large allocations cost as much as a matmul."""

import torch
from torch import Tensor


class Workspace:
    """Named buffers of one device. A buffer's content is whatever its last user left there.

    `contents` may say what that is, by the buffer's name; taking a larger buffer forgets it.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.contents: dict[str, object] = {}
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A contiguous tensor over the start of the buffer `name`, enlarged if need be."""
        numel = 1
        for size in shape:
            numel *= size
        buffer = self._buffers.get((name, dtype))
        if buffer is None or buffer.numel() < numel:
            self.contents.pop(name, None)
            self._buffers.pop((name, dtype), None)
            del buffer
            buffer = torch.empty(numel, dtype=dtype, device=self.device)
            self._buffers[name, dtype] = buffer
        return buffer[:numel].view(shape)
