"""How fast this model trains and samples here. A figure of this machine at this moment, no claim."""

import platform
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..model.base import BaseModel
from .comparisons import Side
from .ours import greedy_of
from .record import Check, passed
from .training import Tenant, create_run, make_store, train_step

_SEQUENCES = 4
_TRAIN_TOKENS = 64  # of a sequence
_PROMPT_TOKENS, _NEW_TOKENS = 16, 16


def measure_speed(side: Side, pool: Sequence[int]) -> Check:
    """Tokens a second of one train step and of one round of sampling, after a warm-up."""
    model, generator, tenant = side.model, side.generator, side.tenants[-1]
    train = _SEQUENCES * _TRAIN_TOKENS / _train_seconds(model, tenant, pool)
    prompts = [list(pool[place : place + _PROMPT_TOKENS]) for place in range(_SEQUENCES)]
    greedy_of(generator, prompts[:1], 2)
    begin = time.perf_counter()
    greedy_of(generator, prompts, _NEW_TOKENS)
    sample = _SEQUENCES * _NEW_TOKENS / (time.perf_counter() - begin)
    return passed(
        "throughput",
        f"train {train:.0f}, sample {sample:.0f} tokens/s",
        f"{_SEQUENCES} sequences at a time, {_TRAIN_TOKENS} tokens trained at rank {tenant.rank} "
        f"or {_NEW_TOKENS} sampled, on {describe_hardware(model.device, model.dtype)}",
    )


def describe_hardware(device: torch.device, dtype: torch.dtype) -> str:
    """The device, its type of numbers and the threads that a measurement depends on."""
    kind = str(dtype).removeprefix("torch.")
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {kind}"
    return f"{_cpu_name()}, {torch.get_num_threads()} threads, {kind}, torch {torch.__version__}"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else f"CPU {platform.machine()}"


def _train_seconds(model: BaseModel, tenant: Tenant, pool: Sequence[int]) -> float:
    store = make_store(model, [tenant])
    run = create_run(store, tenant)
    tokens = np.resize(np.array(pool, np.int64), (_SEQUENCES, _TRAIN_TOKENS))
    weights = np.ones(_TRAIN_TOKENS, np.float32)
    units = [(run, row, weights) for row in tokens]
    train_step(model, store, [(run, tokens[0, :_PROMPT_TOKENS], weights[:_PROMPT_TOKENS])])
    _wait(model.device)
    begin = time.perf_counter()
    for batch in [[unit] for unit in units] if model.runs_on == "sequential" else [units]:
        train_step(model, store, batch)
    _wait(model.device)
    return time.perf_counter() - begin


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
