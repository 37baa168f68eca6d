"""Log-probabilities of tokens from a chunk of logits, and the gradient in the logits' own memory.

Logits are read in their own type and computed with in float32. A row is one program's and its sums
run over blocks whose size follows from the vocabulary alone, so neither bits nor a NaN of a row
depend on other rows. Where a model caps its logits, z below is softcap * tanh(logit / softcap).
C rows of a chunk, V vocabulary, M pairs of a row and a token.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from .shapes import ModelShape
from .variants import Variant, type_name

MAX_BLOCK = 8192  # columns that a program holds at a time
PAIRS = 128  # that a program looks up


@dataclass(frozen=True, slots=True)
class Pulls:
    """Further targets of rows that have several, no pair of row and target twice."""

    rows_M: Tensor  # int64
    targets_M: Tensor  # int64
    weights_M: Tensor  # float32


def rows_logprobs(
    logits_CV: Tensor, targets_C: Tensor, *, softcap: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Log-probability of each row's target, and what the other functions need to know of the row.

        logprob = z[target] - max(z) - log(sum(exp(z - max(z))))

    which stays exact where the target's probability underflows.

    Args:
        logits_CV: contiguous, bf16 or fp32; is not changed.
        targets_C: int64.
        softcap: 0 is off.

    Returns:
        Log-probabilities [C] and norms [C, 2], the two terms that are subtracted; float32.
    """
    num_rows, vocab_size = logits_CV.shape
    logprobs_C = torch.empty(num_rows, dtype=torch.float32, device=logits_CV.device)
    norms_C2 = logprobs_C.new_empty(num_rows, 2)
    rows_variant(vocab_size, logits_CV.dtype, softcap != 0).launch(
        (num_rows,),
        logits_ptr=_whole(logits_CV),
        targets_ptr=targets_C,
        logprobs_ptr=logprobs_C,
        norms_ptr=norms_C2,
        softcap=softcap,
    )
    return logprobs_C, norms_C2


def pair_logprobs(
    logits_CV: Tensor,
    norms_C2: Tensor,
    rows_M: Tensor,
    targets_M: Tensor,
    *,
    softcap: float = 0.0,
) -> Tensor:
    """Log-probability of any pairs of a row and a token, [M] float32; bits as of `rows_logprobs`."""
    logprobs_M = torch.empty(len(rows_M), dtype=torch.float32, device=logits_CV.device)
    pairs_variant(logits_CV.shape[1], logits_CV.dtype, softcap != 0).launch(
        (triton.cdiv(len(rows_M), PAIRS),),
        logits_ptr=_whole(logits_CV),
        norms_ptr=norms_C2,
        rows_ptr=rows_M,
        targets_ptr=targets_M,
        logprobs_ptr=logprobs_M,
        softcap=softcap,
        num_pairs=len(rows_M),
    )
    return logprobs_M


def rows_gradient_(
    logits_CV: Tensor,
    targets_C: Tensor,
    norms_C2: Tensor,
    pushes_C: Tensor,
    pulls_C: Tensor,
    *,
    softcap: float = 0.0,
    further: Pulls | None = None,
) -> Tensor:
    """Overwrite logits with the gradient of the losses, rounded once to their type.

        (push * p - pull * one_hot(target) - sum of weight * one_hot(further target)) * dz/dlogit

    with p the probabilities. A row with one target whose loss has the derivative -c by its
    log-probability has push = pull = c.

    Args:
        logits_CV, targets_C, softcap: as given to `rows_logprobs`.
        norms_C2: what it returned.
        pushes_C, pulls_C: float32.
        further: of rows whose pull is 0.
    """
    num_rows, vocab_size = logits_CV.shape
    is_capped = softcap != 0
    pulled_M = None
    if further is not None:
        pulled_M = torch.empty_like(further.weights_M, dtype=logits_CV.dtype)
        pulls_variant(vocab_size, logits_CV.dtype, is_capped).launch(
            (triton.cdiv(len(pulled_M), PAIRS),),
            logits_ptr=_whole(logits_CV),
            norms_ptr=norms_C2,
            pushes_ptr=pushes_C,
            rows_ptr=further.rows_M,
            targets_ptr=further.targets_M,
            weights_ptr=further.weights_M,
            pulled_ptr=pulled_M,
            softcap=softcap,
            num_pairs=len(pulled_M),
        )
    gradient_variant(vocab_size, logits_CV.dtype, is_capped).launch(
        (num_rows * triton.cdiv(vocab_size, block_size(vocab_size)),),
        logits_ptr=_whole(logits_CV),
        targets_ptr=targets_C,
        norms_ptr=norms_C2,
        pushes_ptr=pushes_C,
        pulls_ptr=pulls_C,
        softcap=softcap,
    )
    if further is not None and pulled_M is not None:
        logits_CV[further.rows_M, further.targets_M] = pulled_M
    return logits_CV


def _whole(logits_CV: Tensor) -> Tensor:
    if not logits_CV.is_contiguous():
        raise ValueError("logits must be contiguous")
    return logits_CV


@triton.jit
def _capped(x, softcap, IS_CAPPED: tl.constexpr):
    """softcap * tanh(x / softcap), by exponentials that cannot overflow."""
    if IS_CAPPED:
        fall = tl.exp(tl.abs(x) * (-2.0 / softcap))
        bent = softcap * ((1 - fall) / (1 + fall))
        x = tl.where(x < 0, -bent, bent)
    return x


@triton.jit
def _cap_slope(x, softcap):
    """The derivative of `_capped`, 1 - tanh(x / softcap)**2, without its cancellation."""
    fall = tl.exp(tl.abs(x) * (-2.0 / softcap))
    return 4 * fall / ((1 + fall) * (1 + fall))


@triton.jit
def _rows_logprobs_kernel(
    logits_ptr,
    targets_ptr,
    logprobs_ptr,
    norms_ptr,
    softcap,
    V: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
    IS_CAPPED: tl.constexpr,
):
    """One row: each lane has a maximum and a sum of its own until the end of the row."""
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * V
    lanes = tl.arange(0, LANES)[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]
    tops = tl.full([LANES], -float("inf"), tl.float32)
    sums = tl.zeros([LANES], tl.float32)
    for start in range(0, V, LANES * VECTOR):
        cols = start + lanes
        x = tl.load(row_ptr + cols, mask=cols < V, other=0.0).to(tl.float32)
        z = tl.where(cols < V, _capped(x, softcap, IS_CAPPED), -float("inf"))
        # What is no number has no part in the maximum; through the sum it spoils its row.
        new_tops = tl.maximum(tops, tl.max(tl.where(z == z, z, -float("inf")), axis=1))
        # A lane that has seen no number yet would compute inf - inf.
        base = tl.where(new_tops == -float("inf"), 0.0, new_tops)
        sums = sums * tl.exp(tops - base) + tl.sum(tl.exp(z - base[:, None]), axis=1)
        tops = new_tops
    top = tl.max(tops, axis=0)
    log_sum = tl.log(tl.sum(sums * tl.exp(tops - top), axis=0))
    target = tl.load(targets_ptr + row)
    z_target = _capped(tl.load(row_ptr + target).to(tl.float32), softcap, IS_CAPPED)
    tl.store(logprobs_ptr + row, z_target - top - log_sum)
    tl.store(norms_ptr + row * 2, top)
    tl.store(norms_ptr + row * 2 + 1, log_sum)


@triton.jit(do_not_specialize=["num_pairs"])
def _pair_logprobs_kernel(
    logits_ptr,
    norms_ptr,
    rows_ptr,
    targets_ptr,
    logprobs_ptr,
    softcap,
    num_pairs,
    V: tl.constexpr,
    PAIRS: tl.constexpr,
    IS_CAPPED: tl.constexpr,
):
    pairs = tl.program_id(0) * PAIRS + tl.arange(0, PAIRS)
    is_pair = pairs < num_pairs
    rows = tl.load(rows_ptr + pairs, mask=is_pair, other=0)
    targets = tl.load(targets_ptr + pairs, mask=is_pair, other=0)
    x = tl.load(logits_ptr + rows * V + targets, mask=is_pair, other=0.0).to(tl.float32)
    tops = tl.load(norms_ptr + rows * 2, mask=is_pair, other=0.0)
    log_sums = tl.load(norms_ptr + rows * 2 + 1, mask=is_pair, other=0.0)
    logprobs = _capped(x, softcap, IS_CAPPED) - tops - log_sums
    tl.store(logprobs_ptr + pairs, logprobs, mask=is_pair)


@triton.jit
def _rows_gradient_kernel(
    logits_ptr,
    targets_ptr,
    norms_ptr,
    pushes_ptr,
    pulls_ptr,
    softcap,
    V: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    IS_CAPPED: tl.constexpr,
):
    """One block of one row."""
    row = (tl.program_id(0) // BLOCKS).to(tl.int64)
    cols = tl.program_id(0) % BLOCKS * BLOCK + tl.arange(0, BLOCK)
    target = tl.load(targets_ptr + row)
    top, log_sum = tl.load(norms_ptr + row * 2), tl.load(norms_ptr + row * 2 + 1)
    push, pull = tl.load(pushes_ptr + row), tl.load(pulls_ptr + row)
    x_ptrs = logits_ptr + row * V + cols
    x = tl.load(x_ptrs, mask=cols < V, other=0.0).to(tl.float32)
    p = tl.exp(_capped(x, softcap, IS_CAPPED) - top - log_sum)
    g = push * p - tl.where(cols == target, pull, 0.0)
    if IS_CAPPED:
        g = g * _cap_slope(x, softcap)
    tl.store(x_ptrs, g.to(logits_ptr.dtype.element_ty), mask=cols < V)


@triton.jit(do_not_specialize=["num_pairs"])
def _pulls_kernel(
    logits_ptr,
    norms_ptr,
    pushes_ptr,
    rows_ptr,
    targets_ptr,
    weights_ptr,
    pulled_ptr,
    softcap,
    num_pairs,
    V: tl.constexpr,
    PAIRS: tl.constexpr,
    IS_CAPPED: tl.constexpr,
):
    """The gradient at further targets, aside: the rows still hold their logits."""
    pairs = tl.program_id(0) * PAIRS + tl.arange(0, PAIRS)
    is_pair = pairs < num_pairs
    rows = tl.load(rows_ptr + pairs, mask=is_pair, other=0)
    targets = tl.load(targets_ptr + pairs, mask=is_pair, other=0)
    weights = tl.load(weights_ptr + pairs, mask=is_pair, other=0.0)
    pushes = tl.load(pushes_ptr + rows, mask=is_pair, other=0.0)
    tops = tl.load(norms_ptr + rows * 2, mask=is_pair, other=0.0)
    log_sums = tl.load(norms_ptr + rows * 2 + 1, mask=is_pair, other=0.0)
    x = tl.load(logits_ptr + rows * V + targets, mask=is_pair, other=0.0).to(tl.float32)
    p = tl.exp(_capped(x, softcap, IS_CAPPED) - tops - log_sums)
    g = pushes * p - weights
    if IS_CAPPED:
        g = g * _cap_slope(x, softcap)
    tl.store(pulled_ptr + pairs, g.to(pulled_ptr.dtype.element_ty), mask=is_pair)


def block_size(vocab_size: int) -> int:
    """Columns of a row that are computed at a time."""
    return min(MAX_BLOCK, max(128, 1 << (vocab_size - 1).bit_length()))


@lru_cache(maxsize=256)
def rows_variant(vocab_size: int, dtype: torch.dtype, is_capped: bool) -> Variant:
    """How `rows_logprobs` runs."""
    block, vector = block_size(vocab_size), 16 // dtype.itemsize
    return Variant(
        name=_name("rows_logprobs", vocab_size, dtype, is_capped),
        kernel=_rows_logprobs_kernel,
        types={
            "logits_ptr": f"*{type_name(dtype)}",
            "targets_ptr": "*i64",
            "logprobs_ptr": "*fp32",
            "norms_ptr": "*fp32",
            "softcap": "fp32",
        },
        constants={
            "V": vocab_size,
            "LANES": block // vector,
            "VECTOR": vector,
            "IS_CAPPED": is_capped,
        },
        num_warps=8 if block == MAX_BLOCK else 4,
        max_narrow_loads=2,  # the target and its logit
    )


@lru_cache(maxsize=256)
def pairs_variant(vocab_size: int, dtype: torch.dtype, is_capped: bool) -> Variant:
    """How `pair_logprobs` runs."""
    return Variant(
        name=_name("pair_logprobs", vocab_size, dtype, is_capped),
        kernel=_pair_logprobs_kernel,
        types={
            "logits_ptr": f"*{type_name(dtype)}",
            "norms_ptr": "*fp32",
            "rows_ptr": "*i64",
            "targets_ptr": "*i64",
            "logprobs_ptr": "*fp32",
            "softcap": "fp32",
            "num_pairs": "i32",
        },
        constants={"V": vocab_size, "PAIRS": PAIRS, "IS_CAPPED": is_capped},
        max_narrow_loads=5,  # every pair lies elsewhere
    )


@lru_cache(maxsize=256)
def gradient_variant(vocab_size: int, dtype: torch.dtype, is_capped: bool) -> Variant:
    """How the rows of `rows_gradient_` run."""
    block = block_size(vocab_size)
    return Variant(
        name=_name("rows_gradient", vocab_size, dtype, is_capped),
        kernel=_rows_gradient_kernel,
        types={
            "logits_ptr": f"*{type_name(dtype)}",
            "targets_ptr": "*i64",
            "norms_ptr": "*fp32",
            "pushes_ptr": "*fp32",
            "pulls_ptr": "*fp32",
            "softcap": "fp32",
        },
        constants={
            "V": vocab_size,
            "BLOCK": block,
            "BLOCKS": triton.cdiv(vocab_size, block),
            "IS_CAPPED": is_capped,
        },
        num_warps=8 if block == MAX_BLOCK else 4,
        max_narrow_loads=5,  # of the row's numbers
    )


@lru_cache(maxsize=256)
def pulls_variant(vocab_size: int, dtype: torch.dtype, is_capped: bool) -> Variant:
    """How the further targets of `rows_gradient_` run."""
    return Variant(
        name=_name("pulls", vocab_size, dtype, is_capped),
        kernel=_pulls_kernel,
        types={
            "logits_ptr": f"*{type_name(dtype)}",
            "norms_ptr": "*fp32",
            "pushes_ptr": "*fp32",
            "rows_ptr": "*i64",
            "targets_ptr": "*i64",
            "weights_ptr": "*fp32",
            "pulled_ptr": f"*{type_name(dtype)}",
            "softcap": "fp32",
            "num_pairs": "i32",
        },
        constants={"V": vocab_size, "PAIRS": PAIRS, "IS_CAPPED": is_capped},
        max_narrow_loads=7,  # every pair lies elsewhere
    )


def all_variants(shape: ModelShape) -> Iterator[Variant]:
    """Every variant that the head of a model can launch."""
    for dtype in (torch.bfloat16, torch.float32):
        for is_capped in (False, True):
            for variant in (rows_variant, pairs_variant, gradient_variant, pulls_variant):
                yield variant(shape.vocab_size, dtype, is_capped)


def _name(kernel: str, vocab_size: int, dtype: torch.dtype, is_capped: bool) -> str:
    capped = " capped" if is_capped else ""
    return f"{kernel}{capped} {type_name(dtype)} V={vocab_size}"
