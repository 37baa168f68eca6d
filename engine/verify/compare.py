"""Judge our numbers against the reference's. Pure: tensors in, one row out."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .record import Check, judged

_TINY = 1e-30  # stands for zero in a quotient
_ROUNDINGS_PER_LAYER = 20  # places in a layer where a value is rounded to the compute type


def logits_limit(dtype: torch.dtype, num_layers: int) -> float:
    """How far two right computations may lie apart, as root mean square, relative.

    In float32 only the order of sums differs, some 1e-6 after a deep model, and a wrong formula is
    off by more than 1e-2. A bfloat16 has 8 bits: every rounding adds up to 2 ** -9 of its own
    direction to both sides, so they grow with the root of their number.
    """
    if dtype == torch.float32:
        return 1e-4
    return 2.0**-9 * math.sqrt(2 * _ROUNDINGS_PER_LAYER * num_layers)


def gradients_limit(dtype: torch.dtype, num_layers: int) -> float:
    """The same for gradients of adapters.

    In bfloat16 four times as much: they pass every layer twice, and are sums of terms of both signs
    that cancel in part, while the roundings of these terms do not. A wrong scale, a missing linear
    or another tenant's rows are off by 0.5 and more.
    """
    return (1 if dtype == torch.float32 else 4) * logits_limit(dtype, num_layers)


def compare_logits(
    ours: Sequence[Tensor], theirs: Sequence[Tensor], limit: float, is_packed: bool
) -> Check:
    """Root mean square of the difference, relative to that of the logits around their mean."""
    found, expected = torch.cat(list(ours)), torch.cat(list(theirs))
    if found.shape != expected.shape:
        detail = f"logits are {tuple(found.shape)}, those of transformers {tuple(expected.shape)}"
        return judged("logits", False, "", detail)
    difference = found - expected
    error = _rms(difference) / _rms(expected - expected.mean(-1, keepdim=True))
    agree = int((found.argmax(-1) == expected.argmax(-1)).sum())
    how = "packed into one batch" if is_packed else "one after the other"
    return judged(
        "logits",
        error <= limit,  # a NaN is not
        f"rms {error:.1e}, limit {limit:.1e}",
        f"{len(found)} rows of {len(ours)} sequences {how} against transformers: max abs "
        f"{float(difference.abs().max()):.1e}, same likeliest token in {agree} rows",
    )


def compare_greedy(
    ours: Sequence[Sequence[int]],
    theirs: Sequence[Sequence[int]],
    gaps: Sequence[Sequence[float]],
    slack: float,
) -> Check:
    """Tokens equal those of `generate`, up to where two tokens are equally likely within rounding.

    Args:
        gaps: for every token of ours, how far it lies below the reference's largest logit.
        slack: a gap that rounding explains.
    """
    num_same = num_tied = 0
    wrong = ""
    for prompt, (found, expected, own_gaps) in enumerate(zip(ours, theirs, gaps, strict=True)):
        same = 0
        while same < min(len(found), len(expected)) and found[same] == expected[same]:
            same += 1
        num_same += same
        if same == len(expected) == len(found):
            continue
        if same < len(found) and own_gaps[same] <= slack:
            num_tied += 1
        else:
            gap = f"{own_gaps[same]:.2g} less likely" if same < len(found) else "not the end"
            wrong = wrong or (
                f"prompt {prompt} goes its own way at token {same}, which the reference holds "
                f"{gap} (in logits; rounding explains {slack:.1g})"
            )
    total = sum(len(answer) for answer in theirs)
    detail = f"{len(ours)} prompts, our sampler at temperature 0 against generate"
    if num_tied:
        detail += f"; {num_tied} part where two tokens are equally likely within rounding"
    return judged("greedy", not wrong, f"{num_same} of {total} tokens", wrong or detail)


def compare_gradients(
    ours: Sequence[dict[str, Tensor]],
    theirs: Sequence[dict[str, Tensor]],
    ranks: Sequence[int],
    limit: float,
    is_packed: bool,
) -> Check:
    """Norm of the difference relative to that of the gradient, tenant by tenant; worst counts."""
    totals: list[float] = []
    errors: dict[str, float] = {}
    for rank, found, expected in zip(ranks, ours, theirs, strict=True):
        if found.keys() != expected.keys():
            return judged("gradients", False, "", f"the adapter of rank {rank} has other tensors")
        differences = {name: found[name] - expected[name] for name in expected}
        size = _norm(expected.values())
        totals.append(_norm(differences.values()) / size)
        floor = 1e-3 * size / math.sqrt(len(expected))  # below it a tensor is as good as zero
        for name, difference in differences.items():
            errors[f"{name} (rank {rank})"] = _norm([difference]) / max(
                _norm([expected[name]]), floor
            )
    error = max(totals, key=_badness)
    worst = max(errors, key=lambda name: _badness(errors[name]))
    is_good = error <= limit and errors[worst] <= 10 * limit
    how = "in one batch" if is_packed else "one after the other"
    return judged(
        "gradients",
        is_good,
        f"error {error:.1e}, limit {limit:.1e}",
        f"adapters of rank {', '.join(map(str, ranks))} {how}, {len(errors)} tensors against peft; "
        f"worst {worst} {errors[worst]:.1e}",
    )


def compare_isolated(
    together: Sequence[Tensor], alone: Sequence[Tensor], limit: float, is_packed: bool
) -> Check:
    """Two adapters beside each other, and beside one of NaN, give what each gives alone."""
    errors = [
        _rms(found - expected) / _rms(expected - expected.mean(-1, keepdim=True))
        for found, expected in zip(together, alone, strict=True)
    ]
    error = max(errors, key=_badness)
    how = "in one batch" if is_packed else "in turn, one sequence at a time"
    return judged(
        "isolation",
        error <= limit,
        f"rms {error:.1e}, limit {limit:.1e}",
        f"two adapters, the base model and an adapter of NaN {how}: each as alone",
    )


def _badness(error: float) -> tuple[bool, float]:
    """Order of errors: a NaN is worse than any number."""
    return math.isnan(error), error


def _norm(tensors: Iterable[Tensor]) -> float:
    squares = sum(float(tensor.double().square().sum()) for tensor in tensors)
    return math.sqrt(squares) or _TINY


def _rms(tensor: Tensor) -> float:
    return float(tensor.double().square().mean().sqrt())
