"""Tables of a batch on the device: one copy, into memory that stays where it is."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Int32s = npt.NDArray[np.int32]
_ALIGNMENT = 16  # elements, 64 bytes


class DeviceInts:
    """int32 tables, end to end in one buffer that grows and never shrinks.

    What `write` returned before is overwritten by the next `write`, on the stream, so after the
    kernels that read it.
    """

    def __init__(self, device: torch.device | str, capacity: int = 1 << 12) -> None:
        self.device = torch.device(device)
        self._take(capacity)

    def write(self, tables: Sequence[Int32s]) -> tuple[Tensor, ...]:
        """Copy tables to the device; returns a view of each, in its shape."""
        starts = np.cumsum([0, *(-(-table.size // _ALIGNMENT) * _ALIGNMENT for table in tables)])
        if starts[-1] > len(self._host):
            self._take(max(2 * len(self._host), int(starts[-1])))
        if self._copied is not None:
            self._copied.synchronize()  # of the last batch, long ago
        host = self._host.numpy()
        for table, start in zip(tables, starts, strict=False):
            host[start : start + table.size] = table.reshape(-1)
        used = int(starts[-1])
        self._device[:used].copy_(self._host[:used], non_blocking=True)
        if self._copied is not None:
            self._copied.record()
        return tuple(
            self._device[start : start + table.size].view(table.shape)
            for table, start in zip(tables, starts.tolist(), strict=False)
        )

    def _take(self, capacity: int) -> None:
        is_cuda = self.device.type == "cuda"
        self._host = torch.zeros(capacity, dtype=torch.int32, pin_memory=is_cuda)
        self._device = torch.zeros(capacity, dtype=torch.int32, device=self.device)
        self._copied = torch.Event(self.device) if is_cuda else None
