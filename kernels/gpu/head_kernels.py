"""The kernels of `head.py`: a row of logits, or pairs of a row and a token.

z is a logit widened to float32, bent to softcap * tanh(logit / softcap) where IS_CAPPED.
"""

import triton
import triton.language as tl


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
def _tree_sum(x, SIZE: tl.constexpr, LEVELS: tl.constexpr):
    """The sum of 2**LEVELS numbers by adding neighbours, in whichever threads they lie.

    So logits have the same sum in bf16 and widened, which threads share differently.
    """
    x = tl.reshape(x, [SIZE])
    for level in tl.static_range(LEVELS):
        left, right = tl.split(tl.reshape(x, [SIZE >> (level + 1), 2]))
        x = left + right
    return tl.sum(x, axis=0)


@triton.jit
def rows_logprobs_kernel(
    logits_ptr,
    targets_ptr,
    logprobs_ptr,
    norms_ptr,
    softcap,
    V: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
    LEVELS: tl.constexpr,
    UNROLLED: tl.constexpr,
    IS_CAPPED: tl.constexpr,
):
    """One row: each lane has a maximum of its own, and each column of a block a sum, until its end."""
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * V
    lanes = tl.arange(0, LANES)[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]
    tops = tl.full([LANES], -float("inf"), tl.float32)
    sums = tl.zeros([LANES, VECTOR], tl.float32)
    for start in range(0, V, LANES * VECTOR * UNROLLED):
        for part in tl.static_range(UNROLLED):
            cols = start + part * LANES * VECTOR + lanes
            x = tl.load(row_ptr + cols, mask=cols < V, other=0.0).to(tl.float32)
            z = tl.where(cols < V, _capped(x, softcap, IS_CAPPED), -float("inf"))
            # What is no number has no part in the maximum; through the sum it spoils its row.
            new_tops = tl.maximum(tops, tl.max(tl.where(z == z, z, -float("inf")), axis=1))
            # A lane that has seen no number yet would compute inf - inf.
            base = tl.where(new_tops == -float("inf"), 0.0, new_tops)
            sums = sums * tl.exp(tops - base)[:, None] + tl.exp(z - base[:, None])
            tops = new_tops
    top = tl.max(tops, axis=0)
    log_sum = tl.log(_tree_sum(sums * tl.exp(tops - top)[:, None], LANES * VECTOR, LEVELS))
    target = tl.load(targets_ptr + row)
    z_target = _capped(tl.load(row_ptr + target).to(tl.float32), softcap, IS_CAPPED)
    tl.store(logprobs_ptr + row, z_target - top - log_sum)
    tl.store(norms_ptr + row * 2, top)
    tl.store(norms_ptr + row * 2 + 1, log_sum)


@triton.jit(do_not_specialize=["num_pairs"])
def pair_logprobs_kernel(
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
def rows_gradient_kernel(
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
def pulls_kernel(
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
