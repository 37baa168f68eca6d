"""What a worker may use of its device and its host."""

import pytest
import torch
from triton import knobs

from weft.client.errors import BadRequest
from weft.engine.worker import devices
from weft.engine.worker.devices import BUSY_DEVICE_SHARE, check_bytes, choose_triton

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


@pytest.mark.parametrize(
    ("kernels", "device", "expected"),
    [("auto", "cuda", True), ("auto", "cpu", False), ("torch", "cuda", False)],
)
def test_the_triton_kernels_are_for_cuda_unless_told_otherwise(
    kernels: str, device: str, expected: bool
) -> None:
    assert choose_triton(kernels, torch.device(device)) == expected


def test_the_triton_kernels_on_a_cpu_are_for_the_interpreter_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(knobs.runtime, "interpret", True)
    assert choose_triton("triton", torch.device("cpu"))
    monkeypatch.setattr(knobs.runtime, "interpret", False)
    with pytest.raises(BadRequest, match="need a CUDA device, not cpu"):
        choose_triton("triton", torch.device("cpu"))
