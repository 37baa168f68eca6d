"""Devices a worker may run on: choosing one, its compute type, and its free memory."""

import os

import torch

from ...client.errors import BadRequest

BUSY_DEVICE_SHARE = 0.5  # of the free host memory a worker on a CPU takes unless told otherwise


def choose_device(name: str) -> torch.device:
    """The device of this name; "" takes cuda when there is one. Raises BadRequest."""
    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        reason = (
            "this torch is built without CUDA"
            if torch.version.cuda is None
            else "no CUDA device is visible"
        )
        raise BadRequest(f"device cuda was asked for, but {reason} (torch {torch.__version__})")
    return torch.device(name or ("cuda" if has_cuda else "cpu"))


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The compute type of this name; "" is float32 on a CPU and bfloat16 elsewhere."""
    if not name:
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def choose_triton(kernels: str, device: torch.device) -> bool:
    """Whether the Triton kernels compute; "auto" says so on a CUDA device.

    Raises:
        BadRequest: Triton is not installed, or was asked for on another device; its interpreter,
            which the tests use, is the exception.
    """
    if kernels == "torch" or (kernels == "auto" and device.type != "cuda"):
        return False
    try:
        from triton import knobs
    except ImportError as error:
        raise BadRequest(
            f"kernels are to be Triton's, which is not installed ({error}); "
            "kernels torch does without"
        ) from error
    if device.type != "cuda" and not knobs.runtime.interpret:
        raise BadRequest(f"kernels triton was asked for, which need a CUDA device, not {device}")
    return True


def free_bytes(device: torch.device) -> int:
    """Memory that is free now: of the device, or of the host for a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    with open("/proc/meminfo", encoding="ascii") as lines:
        fields = dict(line.split(":", 1) for line in lines)
    available = int(fields["MemAvailable"].split()[0]) * 1024
    return min(available, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def granted_bytes(memory_bytes: int, device: torch.device) -> int:
    """What a worker may use: as told, or half of the free host or all free device memory.

    Raises:
        BadRequest: it is told to use more than is free.
    """
    free = free_bytes(device)
    if memory_bytes > free:
        raise BadRequest(
            f"memory_bytes is {memory_bytes / 1e9:.1f} GB and {free / 1e9:.1f} are free",
            "out_of_memory",
        )
    return memory_bytes or (int(free * BUSY_DEVICE_SHARE) if device.type == "cpu" else free)


def check_bytes(granted: int) -> int:
    """What weights may take that are read once more to be checked: they pass through the host."""
    return min(granted, granted_bytes(0, torch.device("cpu")))
