"""Norms and AdamW steps of many adapters at once, whose states lie in one flat tensor.

A *range* is adjacent elements of that tensor, given as a view. It is cut, from its own start, into
pieces of `PIECE` elements, one program each, so that what is computed for it depends on nothing
else. Places and sizes reach the kernels in units of `UNIT` elements: the compiler then knows that
accesses can be of 16 bytes. Nothing is combined by atomics.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from math import sqrt

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl
from torch import Tensor

from ..adam import AdamSettings, AdamTensors
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
Int64s = npt.NDArray[np.int64]


def norms(flats: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of each range, [R] float32, on the device.

    It is NaN when an element is, and infinite when an element is or when the sum of the squares
    leaves float32 (a norm above 1.8e19), as PyTorch's is: Adam's second moment could not hold the
    square of such a gradient either.

    Squares are added in float32, first within pieces and then the sums of pieces, in a tree that
    depends on the size of the range alone. Two launches, however many ranges there are.

    Args:
        flats: float32 views of one tensor, at least one, [elements] each; places and sizes are
            multiples of `UNIT`.

    Raises:
        ValueError: others.
    """
    records, owners = _records([_units(flats)])
    device = flats[0].device
    found = torch.empty(len(flats), dtype=torch.float32, device=device)
    partials = torch.empty(len(owners), dtype=torch.float32, device=device)
    records_, owners_ = _upload([records, owners], device)
    _partials_variant().launch(
        (len(owners),),
        x_ptr=_whole(flats[0]),
        records_ptr=records_,
        owners_ptr=owners_,
        partials_ptr=partials,
    )
    _norms_variant().launch(
        (len(flats),), partials_ptr=partials, records_ptr=records_, norms_ptr=found
    )
    return found


def adamw_(
    items: Sequence[AdamTensors], versions: Sequence[Tensor], settings: Sequence[AdamSettings]
) -> Tensor:
    """Step every adapter in place and write its new compute weights; one launch.

        g = gradient_scale * gradient
        m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2
        p = p - (rate * decay * p + rate / (1 - beta1^step) * m / (sqrt(v / (1 - beta2^step)) + eps))
        version = p, rounded to the nearest even of its type

    All in float32; what is the same for a whole adapter is computed in float64 and rounded once.
    Gradients are only read. All memory is taken before the first write.

    Args:
        items: the adapters, at least one: views of one tensor as for `norms`. What is written does
            not overlap.
        versions: views of another tensor in the same way, bfloat16 or float32.
        settings: of each.

    Returns:
        1 where all new weights and their rounded version are finite, else 0; [R] int32, on the
        device.

    Raises:
        ValueError: another type or layout.

    Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019, algorithm 2. The
    oracle is `reference.adamw`.
    """
    variant = _adamw_variant(versions[0].dtype)
    parts = [(one.weight, one.gradient, one.moment1, one.moment2) for one in items]
    state = _units([part for each in parts for part in each])
    places = [state[column::4] for column in range(4)]
    records, owners = _records([*places, _units(versions, versions[0].dtype)])
    rows = [_shared(one, chosen) for one, chosen in zip(items, settings, strict=True)]
    with np.errstate(over="ignore"):
        shared = np.array(rows, np.float64).astype(np.float32)
    is_finite = np.ones(len(items), np.int32)
    records_, owners_, shared_, is_finite_ = _upload(
        [records, owners, shared.view(np.int32), is_finite], versions[0].device
    )
    variant.launch(
        (len(owners),),
        state_ptr=_whole(items[0].weight),
        weights_ptr=_whole(versions[0]),
        records_ptr=records_,
        owners_ptr=owners_,
        shared_ptr=shared_.view(torch.float32),
        is_finite_ptr=is_finite_,
    )
    return is_finite_


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
    is_finite_ptr,
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
    is_finite = tl.full([BLOCK], 1, tl.int32)
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
        finite = tl.abs(version.to(tl.float32)) < float("inf")  # then weight is, too
        is_finite = tl.where(mask & (finite == 0), 0, is_finite)
    # Several programs of one adapter may write this; all write the same.
    tl.store(is_finite_ptr + owner, 0, mask=tl.min(is_finite, 0) == 0)


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
            "is_finite_ptr": "*i32",
        },
        constants={"UNIT": UNIT, "BLOCK": BLOCK, "PIECE": PIECE},
        num_warps=8,
        max_narrow_loads=17,
    )


def _shared(one: AdamTensors, settings: AdamSettings) -> tuple[float, ...]:
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


def _units(flats: Sequence[Tensor], dtype: torch.dtype = torch.float32) -> Int64s:
    """Place in its storage and size of each view, in units, [views, 2]."""
    storages = {flat.untyped_storage().data_ptr() for flat in flats}
    if len(storages) > 1 or any(flat.dtype != dtype or flat.stride() != (1,) for flat in flats):
        raise ValueError(f"not flat views of one tensor of {dtype}")
    elements = np.array([(flat.storage_offset(), flat.numel()) for flat in flats], np.int64)
    if (elements % UNIT).any():
        raise ValueError(f"a view does not start and end at multiples of {UNIT} elements")
    return elements // UNIT


def _records(views: Sequence[Int64s]) -> tuple[Int32s, Int32s]:
    """A record for each range, of views of equal size, and the owner of each program."""
    sizes = views[0][:, 1]
    columns = [sizes, *(view[:, 0] for view in views)]
    if any((view[:, 1] != sizes).any() for view in views):
        raise ValueError("views of one adapter differ in size")
    if max(column.max() for column in columns) >= 1 << 31:
        raise ValueError(f"a view starts beyond {UNIT << 31} elements")
    num_programs = -(-sizes * UNIT // PIECE)
    records = np.zeros((len(sizes), RECORD_WIDTH.value), np.int32)
    records[:, : len(columns)] = np.stack(columns, axis=1)
    records[:, FIRST_PROGRAM.value] = np.cumsum(num_programs) - num_programs
    records[:, NUM_PROGRAMS.value] = num_programs
    return records, np.repeat(np.arange(len(sizes), dtype=np.int32), num_programs)


def _whole(view: Tensor) -> Tensor:
    """The tensor that it is a view of, from its first element on."""
    return view.as_strided((1,), (1,), 0)


def _upload(arrays: Sequence[Int32s], device: torch.device) -> list[Tensor]:
    """Flat copies on the device, by one transfer; each starts at a multiple of 16 bytes."""
    sizes = [-(-array.size // 4) * 4 for array in arrays]
    host = np.zeros(sum(sizes), np.int32)
    starts = np.cumsum([0, *sizes])[:-1].tolist()
    for start, array in zip(starts, arrays, strict=True):
        host[start : start + array.size] = array.reshape(-1)
    staged = torch.from_numpy(host)
    if device.type == "cuda":
        staged = staged.pin_memory()  # else the copy would wait for what the device has to do
    both = staged.to(device, copy=True, non_blocking=True)
    return [both[start : start + array.size] for start, array in zip(starts, arrays, strict=True)]
