"""Optimizer steps of all runs that are due, as one pass."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Protocol

import torch

from ...client.errors import BadRequest, Busy, Conflict, WeftError
from ...kernels.adam import AdamSettings, AdamTensors, adamw_
from .states import MASTER, MOMENT1, MOMENT2
from .store import AdapterStore, Run, WeightsVersion


class AdamParams(Protocol):
    """The fields of the official AdamParams."""

    @property
    def learning_rate(self) -> float: ...
    @property
    def beta1(self) -> float: ...
    @property
    def beta2(self) -> float: ...
    @property
    def eps(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def grad_clip_norm(self) -> float: ...


@dataclass(frozen=True, slots=True)
class StepResult:
    """What became of one run's step."""

    grad_norm: float  # Euclidean, before clipping
    applied: bool
    weights_are_finite: bool = True  # false after a step that overflowed
    error: WeftError | None = None  # why it was not applied


@dataclass(frozen=True, slots=True)
class _Due:
    run: Run
    params: AdamParams
    version: WeightsVersion  # where the new weights go


def step(store: AdapterStore, due: Sequence[tuple[Run, AdamParams]]) -> list[StepResult]:
    """Take one step of AdamW for every run that is due, each with its own hyper-parameters.

    A run's gradient is clipped by its own norm when `grad_clip_norm` is above zero, and used up.
    New weights become a new version when the old one is held elsewhere. Only runs in `due` are
    read or written, and each is refused for itself:

        no_gradients   nothing was accumulated; nothing changes
        non_finite     the gradient's norm is not finite: it is cleared, the step count kept
        busy           no room for a new version; nothing changes, the gradient is kept

    Args:
        store: of the runs.
        due: different runs, with the fields of AdamParams.

    Returns:
        One result a run, in order. Waits for the device.

    Raises:
        Exception: whatever the device raised; out of memory changes nothing.
    """
    gradients = [store.flat(run, run.gradient_plane) for run, _ in due if run.has_gradient]
    norms = iter(store.norms(gradients))
    results: list[StepResult | None] = [None] * len(due)
    ready: dict[int, _Due] = {}
    clips: dict[int, float] = {}
    for index, (run, params) in enumerate(due):
        norm = next(norms) if run.has_gradient else 0.0
        try:
            ready[index] = _admit(store, run, params, norm)
        except WeftError as error:
            results[index] = StepResult(norm, applied=False, error=error)
            continue
        results[index] = StepResult(norm, applied=True)
        if 0 < params.grad_clip_norm < norm:
            clips[index] = params.grad_clip_norm / norm
    if ready:
        try:
            are_finite = _apply(store, ready, clips)
        except BaseException:
            for one in ready.values():
                store.forget(one.run, one.version)
            raise
        for index, is_finite in zip(ready, are_finite, strict=True):
            result = results[index]
            assert result is not None
            results[index] = StepResult(result.grad_norm, True, is_finite)
    return [result for result in results if result is not None]


def _admit(store: AdapterStore, run: Run, params: AdamParams, norm: float) -> _Due:
    if not run.has_gradient:
        raise Conflict("optim_step without a gradient", "no_gradients")
    if not isfinite(norm):
        run.has_gradient = False
        raise BadRequest(f"the gradient norm is {norm}", "non_finite")
    try:
        return _Due(run, params, store.prepare_version(run))
    except Busy as error:
        raise Busy(f"{error}; snapshots of this or other runs hold it") from None


def _apply(store: AdapterStore, ready: dict[int, _Due], clips: dict[int, float]) -> list[bool]:
    """Step and publish; whose weights are finite then. Waits for the device."""
    items = list(ready.values())
    tensors = [
        AdamTensors(
            weight=store.writable(one.run, MASTER),
            gradient=store.writable(one.run, one.run.gradient_plane),
            moment1=store.writable(one.run, MOMENT1),
            moment2=store.writable(one.run, MOMENT2),
            step=one.run.step + 1,
            gradient_scale=clips.get(index, 1.0),
        )
        for index, one in ready.items()
    ]
    settings = [
        AdamSettings(
            learning_rate=one.params.learning_rate,
            beta1=one.params.beta1,
            beta2=one.params.beta2,
            eps=one.params.eps,
            weight_decay=one.params.weight_decay,
        )
        for one in items
    ]
    versions = [store.version_flat(one.version) for one in items]
    if store.uses_triton:
        from ...kernels.gpu import optimizer as gpu  # needs Triton

        flags = gpu.adamw_(tensors, versions, settings)
    else:
        adamw_(tensors, settings)
        torch._foreach_copy_(versions, [each.weight for each in tensors])
    for one in items:
        store.publish(one.run, one.version)
        one.run.step += 1
        one.run.has_gradient = False
    if store.uses_triton:
        return [flag == 1 for flag in flags.tolist()]
    return [isfinite(norm) for norm in store.norms([each.weight for each in tensors])]
