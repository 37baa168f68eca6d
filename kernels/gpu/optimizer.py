"""Norms and AdamW steps of many adapters at once, whose states lie in one flat tensor.

A *range* is adjacent elements of that tensor. Each is cut, from its own start, into pieces of
`PIECE` elements, one program each, so that what is computed for it depends on the range alone.
Places and sizes are counted in units of `UNIT` elements: the compiler then knows that all accesses
can be of 16 bytes. Nothing is combined by atomics.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import sqrt

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl
from torch import Tensor

from ..adam import AdamSettings
from .shapes import ModelShape
from .variants import Variant, type_name

UNIT = 16  # elements
BLOCK = 2048  # elements that a program holds at a time
PIECE = 8192  # elements of a program
PARTIALS = 1024  # sums of pieces that are added at a time
# Columns of a range's record, places and sizes in units.
SIZE, WEIGHT, GRADIENT, MOMENT1, MOMENT2, VERSION, FIRST_PROGRAM, NUM_PROGRAMS = (
    tl.constexpr(column) for column in range(8)
)
RECORD_WIDTH = tl.constexpr(8)
# Columns of the numbers that an adapter's elements share.
STEP_SIZE, DECAY, BETA1, REST1, BETA2, REST2, CORRECTION2, EPS, GRADIENT_SCALE = (
    tl.constexpr(column) for column in range(9)
)
SHARED_WIDTH = tl.constexpr(9)

Int32s = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class AdamRange:
    """Where the parts of one adapter start, in elements, and its step."""

    weight: int  # in the state
    gradient: int
    moment1: int
    moment2: int
    version: int  # of the new compute weights, in their own tensor
    size: int
    step: int  # the number of this step, from 1
    gradient_scale: float = 1.0  # the gradient is multiplied by it first


def norms(flat: Tensor, starts: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """Euclidean norm of each range, [R] float32, on the device.

    It is NaN when an element is, and infinite when an element is or when the sum of the squares
    leaves float32 (a norm above 1.8e19), as PyTorch's is: Adam's second moment could not hold the
    square of such a gradient either.

    Squares are added in float32, first within pieces and then the sums of pieces, in a tree that
    depends on the size of the range alone. Two launches, however many ranges there are.

    Args:
        flat: float32, contiguous.
        starts, sizes: of each range, in elements, multiples of 16.

    Raises:
        ValueError: another type or layout.
    """
    _check(flat, torch.float32)
    records, owners = _records(sizes, starts)
    found = torch.empty(len(records), dtype=torch.float32, device=flat.device)
    partials = torch.empty(len(owners), dtype=torch.float32, device=flat.device)
    records_, owners_ = _upload([records, owners], flat.device)
    _partials_variant().launch(
        (len(owners),), x_ptr=flat, records_ptr=records_, owners_ptr=owners_, partials_ptr=partials
    )
    _norms_variant().launch(
        (len(records),), partials_ptr=partials, records_ptr=records_, norms_ptr=found
    )
    return found


def adamw_(
    state: Tensor, weights: Tensor, ranges: Sequence[AdamRange], settings: Sequence[AdamSettings]
) -> Tensor:
    """Step every adapter in place and write its new compute weights; one launch.

        g = gradient_scale * gradient
        m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2
        p = p - (rate * decay * p + rate / (1 - beta1^step) * m / (sqrt(v / (1 - beta2^step)) + eps))
        version = p, rounded to the nearest even of its type

    All in float32; what is the same for a whole adapter is computed in float64 and rounded once.
    The gradient is only read. All memory is taken before the first write.

    Args:
        state: float32, flat, contiguous: weights, gradients and moments.
        weights: of any shape, contiguous, bfloat16 or float32.
        ranges: places and sizes are multiples of 16; what they write does not overlap.
        settings: of each.

    Returns:
        Whether all new weights and their rounded version are finite, [R] bool, on the device.

    Raises:
        ValueError: another type or layout.

    Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019, algorithm 2. The
    oracle is `reference.adamw`.
    """
    _check(state, torch.float32)
    _check(weights, weights.dtype)
    variant = _adamw_variant(weights.dtype)
    records, owners = _records(
        [one.size for one in ranges],
        [one.weight for one in ranges],
        [one.gradient for one in ranges],
        [one.moment1 for one in ranges],
        [one.moment2 for one in ranges],
        [one.version for one in ranges],
    )
    rows = [_shared(one, chosen) for one, chosen in zip(ranges, settings, strict=True)]
    with np.errstate(over="ignore"):
        shared = np.array(rows, np.float64).astype(np.float32)
    is_broken = np.zeros(len(ranges), np.int32)
    records_, owners_, shared_, is_broken_ = _upload(
        [records, owners, shared.view(np.int32), is_broken], state.device
    )
    variant.launch(
        (len(owners),),
        state_ptr=state,
        weights_ptr=weights,
        records_ptr=records_,
        owners_ptr=owners_,
        shared_ptr=shared_.view(torch.float32),
        is_broken_ptr=is_broken_,
    )
    return is_broken_ == 0


def all_variants(shape: ModelShape) -> Iterator[Variant]:
    """Every variant that a model may launch: the same for all of them."""
    yield _partials_variant()
    yield _norms_variant()
    for dtype in (torch.bfloat16, torch.float32):
        yield _adamw_variant(dtype)


@triton.jit
def _partials_kernel(
    x_ptr,
    records_ptr,
    owners_ptr,
    partials_ptr,
    UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
    PIECE: tl.constexpr,
):
    pid = tl.program_id(0)
    record_ptr = records_ptr + tl.load(owners_ptr + pid).to(tl.int64) * RECORD_WIDTH
    first = (pid - tl.load(record_ptr + FIRST_PROGRAM)).to(tl.int64) * PIECE
    size = tl.minimum(tl.load(record_ptr + SIZE).to(tl.int64) * UNIT - first, PIECE)
    x_ptr += tl.load(record_ptr + WEIGHT).to(tl.int64) * UNIT + first
    lanes = tl.arange(0, BLOCK)
    acc = tl.zeros([BLOCK], tl.float32)
    for start in range(0, PIECE, BLOCK):
        x = tl.load(x_ptr + start + lanes, mask=start + lanes < size, other=0.0)
        acc += x * x
    tl.store(partials_ptr + pid, tl.sum(acc))


@triton.jit
def _norms_kernel(partials_ptr, records_ptr, norms_ptr, BLOCK: tl.constexpr):
    pid = tl.program_id(0)
    record_ptr = records_ptr + pid.to(tl.int64) * RECORD_WIDTH
    partials_ptr += tl.load(record_ptr + FIRST_PROGRAM)
    count = tl.load(record_ptr + NUM_PROGRAMS)
    lanes = tl.arange(0, BLOCK)
    acc = tl.zeros([BLOCK], tl.float32)
    for start in range(0, count, BLOCK):
        acc += tl.load(partials_ptr + start + lanes, mask=start + lanes < count, other=0.0)
    tl.store(norms_ptr + pid, tl.sqrt_rn(tl.sum(acc)))


@triton.jit
def _adamw_kernel(
    state_ptr,
    weights_ptr,
    records_ptr,
    owners_ptr,
    shared_ptr,
    is_broken_ptr,
    UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
    PIECE: tl.constexpr,
):
    pid = tl.program_id(0)
    owner = tl.load(owners_ptr + pid).to(tl.int64)
    record_ptr = records_ptr + owner * RECORD_WIDTH
    shared_ptr += owner * SHARED_WIDTH
    step_size = tl.load(shared_ptr + STEP_SIZE)
    decay = tl.load(shared_ptr + DECAY)
    beta1 = tl.load(shared_ptr + BETA1)
    rest1 = tl.load(shared_ptr + REST1)
    beta2 = tl.load(shared_ptr + BETA2)
    rest2 = tl.load(shared_ptr + REST2)
    correction2 = tl.load(shared_ptr + CORRECTION2)
    eps = tl.load(shared_ptr + EPS)
    gradient_scale = tl.load(shared_ptr + GRADIENT_SCALE)
    first = (pid - tl.load(record_ptr + FIRST_PROGRAM)).to(tl.int64) * PIECE
    size = tl.minimum(tl.load(record_ptr + SIZE).to(tl.int64) * UNIT - first, PIECE)
    weight_ptr = state_ptr + tl.load(record_ptr + WEIGHT).to(tl.int64) * UNIT + first
    gradient_ptr = state_ptr + tl.load(record_ptr + GRADIENT).to(tl.int64) * UNIT + first
    moment1_ptr = state_ptr + tl.load(record_ptr + MOMENT1).to(tl.int64) * UNIT + first
    moment2_ptr = state_ptr + tl.load(record_ptr + MOMENT2).to(tl.int64) * UNIT + first
    version_ptr = weights_ptr + tl.load(record_ptr + VERSION).to(tl.int64) * UNIT + first
    lanes = tl.arange(0, BLOCK)
    broken = tl.zeros([BLOCK], tl.int32)
    for start in range(0, PIECE, BLOCK):
        offsets = start + lanes
        mask = offsets < size
        gradient = tl.load(gradient_ptr + offsets, mask=mask, other=0.0) * gradient_scale
        moment1 = tl.load(moment1_ptr + offsets, mask=mask, other=0.0)
        moment2 = tl.load(moment2_ptr + offsets, mask=mask, other=0.0)
        weight = tl.load(weight_ptr + offsets, mask=mask, other=0.0)
        moment1 = beta1 * moment1 + rest1 * gradient
        moment2 = beta2 * moment2 + rest2 * (gradient * gradient)
        change = step_size * tl.div_rn(moment1, tl.sqrt_rn(moment2) * correction2 + eps)
        weight -= decay * weight + change
        version = weight.to(version_ptr.dtype.element_ty)
        tl.store(moment1_ptr + offsets, moment1, mask=mask)
        tl.store(moment2_ptr + offsets, moment2, mask=mask)
        tl.store(weight_ptr + offsets, weight, mask=mask)
        tl.store(version_ptr + offsets, version, mask=mask)
        is_finite = tl.abs(version.to(tl.float32)) < float("inf")  # then weight is, too
        broken = tl.where(mask & (is_finite == 0), 1, broken)
    # Programs of one adapter that find something all write the same.
    tl.store(is_broken_ptr + owner, 1, mask=tl.max(broken, 0) > 0)


@lru_cache
def _partials_variant() -> Variant:
    return Variant(
        name="norm partials fp32",
        kernel=_partials_kernel,
        types={
            "x_ptr": "*fp32",
            "records_ptr": "*i32",
            "owners_ptr": "*i32",
            "partials_ptr": "*fp32",
        },
        constants={"UNIT": UNIT, "BLOCK": BLOCK, "PIECE": PIECE},
        num_warps=8,
        max_narrow_loads=4,
    )


@lru_cache
def _norms_variant() -> Variant:
    return Variant(
        name="norms fp32",
        kernel=_norms_kernel,
        types={"partials_ptr": "*fp32", "records_ptr": "*i32", "norms_ptr": "*fp32"},
        constants={"BLOCK": PARTIALS},
        num_warps=4,
        max_narrow_loads=10,  # a range's partials start anywhere
    )


@lru_cache
def _adamw_variant(dtype: torch.dtype) -> Variant:
    return Variant(
        name=f"adamw {type_name(dtype)}",
        kernel=_adamw_kernel,
        types={
            "state_ptr": "*fp32",
            "weights_ptr": f"*{type_name(dtype)}",
            "records_ptr": "*i32",
            "owners_ptr": "*i32",
            "shared_ptr": "*fp32",
            "is_broken_ptr": "*i32",
        },
        constants={"UNIT": UNIT, "BLOCK": BLOCK, "PIECE": PIECE},
        num_warps=8,
        max_narrow_loads=17,
    )


def _shared(one: AdamRange, settings: AdamSettings) -> tuple[float, ...]:
    """The numbers that an adapter's elements share, in the order of their columns."""
    rate, beta1, beta2 = settings.learning_rate, settings.beta1, settings.beta2
    return (
        rate / (1 - beta1**one.step),
        rate * settings.weight_decay,
        beta1,
        1 - beta1,
        beta2,
        1 - beta2,
        1 / sqrt(1 - beta2**one.step),
        settings.eps,
        one.gradient_scale,
    )


def _records(sizes: Sequence[int], *starts: Sequence[int]) -> tuple[Int32s, Int32s]:
    """A record for each range, and the owner of each program."""
    places = np.array([sizes, *starts], np.int64)
    if (places % UNIT).any():
        raise ValueError(f"a range does not start and end at multiples of {UNIT} elements")
    units = places // UNIT
    if units.max(initial=0) >= 1 << 31:
        raise ValueError(f"a range starts beyond {UNIT << 31} elements")
    num_programs = -(-places[0] // PIECE)
    records = np.zeros((len(sizes), 8), np.int32)
    records[:, : len(units)] = units.T
    records[:, -2] = np.cumsum(num_programs) - num_programs
    records[:, -1] = num_programs
    return records, np.repeat(np.arange(len(sizes), dtype=np.int32), num_programs)


def _upload(arrays: Sequence[Int32s], device: torch.device) -> list[Tensor]:
    """Flat copies on the device, by one transfer; each starts at a multiple of 16 bytes."""
    sizes = [-(-array.size // 4) * 4 for array in arrays]
    host = np.zeros(sum(sizes), np.int32)
    starts = np.cumsum([0, *sizes])[:-1].tolist()
    for start, array in zip(starts, arrays, strict=True):
        host[start : start + array.size] = array.reshape(-1)
    both = torch.from_numpy(host).to(device, copy=True)
    return [both[start : start + array.size] for start, array in zip(starts, arrays, strict=True)]


def _check(tensor: Tensor, dtype: torch.dtype) -> None:
    if tensor.dtype != dtype or not tensor.is_contiguous():
        raise ValueError(f"expected a contiguous tensor of {dtype}, not {tensor.dtype}")
