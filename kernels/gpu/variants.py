"""A kernel with everything that is fixed when it is compiled, and its launch.

Every module here has a function that says which variant serves a shape. The launch and
`bench/kernel_resources.py`, which compiles without a device, both ask it, so what was checked is
what runs. Nothing is tuned while it runs: a variant follows from static shapes, the adapter's own
rank bucket and the phase, never from what else is in the batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

TYPE_NAMES = {torch.bfloat16: "bf16", torch.float32: "fp32"}


class UnknownVariant(ValueError):
    """No such form of a kernel was compiled and checked; the message names it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Variant:
    """One compiled form of a kernel.

    Pointers are to lie at multiples of 16 bytes, as every tensor that PyTorch allocates does.
    """

    name: str  # for people: kernel, dtype, sizes
    kernel: Any  # a `triton.jit` function
    types: Mapping[str, str]  # of the arguments: "*bf16", "*i32", "i32", "fp32"
    constants: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 3
    has_dot: bool = False  # its products must be done by tensor cores
    multiples_of_16: tuple[str, ...] = ()  # integer arguments that always are
    max_narrow_loads: int = 0  # global loads below 16 bytes: of tables and scalars
    # Of a thread. Where it is stated, the compiler takes what it needs up to this; where it is 0, it
    # may spill a few registers to fit one more program on the device.
    max_registers: int = 0

    @property
    def options(self) -> dict[str, Any]:
        """Of the compiler, for the launch and ahead of time."""
        return {
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "enable_fp_fusion": True,
            **({"maxnreg": self.max_registers} if self.max_registers else {}),
        }

    def launch(self, grid: tuple[int, ...], **arguments: Any) -> None:
        """Run it over a grid of programs; nothing at all over an empty one."""
        if all(grid):
            self.kernel[grid](**arguments, **self.constants, **self.options)


def type_name(dtype: torch.dtype) -> str:
    """The name of an element type in variants.

    Raises:
        UnknownVariant: no kernel is built for it.
    """
    if dtype not in TYPE_NAMES:
        raise UnknownVariant(f"no kernel for elements of {dtype}")
    return TYPE_NAMES[dtype]
