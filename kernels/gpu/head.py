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
from torch import Tensor

from .head_kernels import (
    pair_logprobs_kernel,
    pulls_kernel,
    rows_gradient_kernel,
    rows_logprobs_kernel,
)
from .shapes import ModelShape
from .variants import Variant, type_name

SUM_BLOCK = 2048  # columns of a row that have sums of their own, eight a thread
UNROLLED = 4  # such blocks that are on their way at a time
GRADIENT_BLOCK = 8192  # columns of a program
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


def row_bounds(logits_CV: Tensor) -> tuple[Tensor, Tensor]:
    """The largest logit of each row and log of its probability, as `kernels.head.logit_bounds`.

    Bits of `logprobs` from these are those of `rows_logprobs`, in either type of the same logits.
    """
    targets_C = torch.zeros(len(logits_CV), dtype=torch.int64, device=logits_CV.device)
    _, norms_C2 = rows_logprobs(logits_CV, targets_C)
    return norms_C2[:, 0], -norms_C2[:, 1]


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
        (num_rows * triton.cdiv(vocab_size, _block(vocab_size, GRADIENT_BLOCK)),),
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


@lru_cache(maxsize=256)
def rows_variant(vocab_size: int, dtype: torch.dtype, is_capped: bool) -> Variant:
    """How `rows_logprobs` runs."""
    block, vector = _block(vocab_size, SUM_BLOCK), 8
    return Variant(
        name=_name("rows_logprobs", vocab_size, dtype, is_capped),
        kernel=rows_logprobs_kernel,
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
            "LEVELS": block.bit_length() - 1,
            "UNROLLED": min(UNROLLED, triton.cdiv(vocab_size, block)),
            "IS_CAPPED": is_capped,
        },
        num_warps=8 if block == SUM_BLOCK else 4,
        max_narrow_loads=2,  # the target and its logit
    )


@lru_cache(maxsize=256)
def pairs_variant(vocab_size: int, dtype: torch.dtype, is_capped: bool) -> Variant:
    """How `pair_logprobs` runs."""
    return Variant(
        name=_name("pair_logprobs", vocab_size, dtype, is_capped),
        kernel=pair_logprobs_kernel,
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
    block = _block(vocab_size, GRADIENT_BLOCK)
    return Variant(
        name=_name("rows_gradient", vocab_size, dtype, is_capped),
        kernel=rows_gradient_kernel,
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
        num_warps=8 if block == GRADIENT_BLOCK else 4,
        max_narrow_loads=5,  # of the row's numbers
    )


@lru_cache(maxsize=256)
def pulls_variant(vocab_size: int, dtype: torch.dtype, is_capped: bool) -> Variant:
    """How the further targets of `rows_gradient_` run."""
    return Variant(
        name=_name("pulls", vocab_size, dtype, is_capped),
        kernel=pulls_kernel,
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


def _block(vocab_size: int, largest: int) -> int:
    """A power of two, no more than the vocabulary asks for."""
    return min(largest, max(128, 1 << (vocab_size - 1).bit_length()))


def _name(kernel: str, vocab_size: int, dtype: torch.dtype, is_capped: bool) -> str:
    capped = " capped" if is_capped else ""
    return f"{kernel}{capped} {type_name(dtype)} V={vocab_size}"
