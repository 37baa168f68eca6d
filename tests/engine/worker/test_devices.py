"""What a worker may use of its device and its host."""

import pytest
import torch

from weft.engine.worker import devices
from weft.engine.worker.devices import BUSY_DEVICE_SHARE, check_bytes

HOST_FREE = 10_000


@pytest.mark.parametrize(
    ("granted", "allowed"),
    [
        pytest.param(3_000, 3_000, id="the device is the smaller"),
        pytest.param(80_000, int(HOST_FREE * BUSY_DEVICE_SHARE), id="the host is the smaller"),
    ],
)
def test_weights_read_for_a_check_fit_the_device_and_the_host(
    monkeypatch: pytest.MonkeyPatch, granted: int, allowed: int
) -> None:
    def free(device: torch.device) -> int:
        assert device.type == "cpu"
        return HOST_FREE

    monkeypatch.setattr(devices, "free_bytes", free)
    assert check_bytes(granted) == allowed
