"""The order of a verification: files, tokens, our side, the reference, one row after another.

Memory: one copy of the weights in the compute type at a time. Our side is closed before the
reference is opened. Beside it stand adapters of rank 17 in all (20 bytes a parameter), the logits
of 138 tokens and the activations of 256 trained tokens. What cannot hold the weights is told before
they are read.

Not checked, since both sides run it alike: a config.json that states another rotary base, epsilon
or activation than the weights were trained with.
"""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...client.errors import WeftError
from ..model.base import BaseModel
from ..worker.base_models import open_model
from ..worker.devices import (
    check_bytes,
    choose_device,
    choose_dtype,
    choose_triton,
    granted_bytes,
)
from ..worker.loading import load_tokenizer
from ..worker.model_names import ModelSource, check_files, find_model
from . import files
from .comparisons import Comparison, Gradients, Greedy, Logits, Side
from .facts import Facts, check_config, read_facts
from .isolation import check_isolation
from .opening import check_memory, check_model, check_room, open_generator
from .probes import make_pool
from .record import Check, failed, failure, guarded, skipped
from .reference import Reference, has_peft
from .speed import measure_speed
from .tokens import check_ends, check_template, check_tokenizer
from .training import make_tenants

_NUMBERS = ("model", "memory", "isolation", "throughput", "logits", "greedy", "gradients")
_POOL_TOKENS = 256


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """What is verified, and on what."""

    model: str  # weft/tiny, a directory, or a name on the hub
    device: str = ""  # "" takes cuda when there is one
    dtype: str = ""  # "" is float32 on a CPU and bfloat16 on a GPU
    modelling: str = "auto"  # as of `WorkerConfig`


def verify(config: VerifyConfig, report: Callable[[Check], None]) -> list[Check]:
    """Check everything; each row is also given to `report` as soon as it is known.

    Raises:
        WeftError: there is no such model or device.
    """
    device = choose_device(config.device)
    dtype = choose_dtype(config.dtype, device)
    source = find_model(config.model)
    check_files(source.directory)
    rows = Rows(report)
    facts = _check_files(rows, source.directory, config.modelling)
    is_damaged = rows.has_failed
    tokenizer = _check_tokens(rows, source, facts)
    if is_damaged or facts is None:
        for name in _NUMBERS:
            rows.add(skipped(name, "not computed from damaged files"))
        return rows.checks
    machine = Machine(source.directory, config.modelling, device, dtype)
    _check_numbers(rows, machine, tokenizer)
    return rows.checks


class Rows:
    """The rows so far."""

    def __init__(self, report: Callable[[Check], None]) -> None:
        self.checks: list[Check] = []
        self._report = report

    @property
    def has_failed(self) -> bool:
        return any(check.status == "FAIL" for check in self.checks)

    def add(self, check: Check) -> bool:
        """Add a row; returns whether it passed."""
        self.checks.append(check)
        self._report(check)
        return check.status == "PASS"

    def run(self, name: str, check: Callable[[], Check]) -> bool:
        """Add what a check finds, or what it raises."""
        return self.add(guarded(name, check))


@dataclass(frozen=True, slots=True)
class Machine:
    """Where and how the numbers are computed."""

    directory: Path
    modelling: str
    device: torch.device
    dtype: torch.dtype


def _check_files(rows: Rows, directory: Path, modelling: str) -> Facts | None:
    facts = None
    try:
        facts = read_facts(directory, modelling)
        rows.add(check_config(facts))
    except WeftError as error:
        rows.add(failed("config", str(error)))
    if not rows.run("files", lambda: files.check_files(directory)):
        for name in ("tensors", "values"):
            rows.add(skipped(name, "a file cannot be read"))
        return facts
    if facts is not None and (native := facts.native) is not None:
        rows.run("tensors", lambda: files.check_shapes(directory, native))
    rows.run("values", lambda: files.check_values(directory))
    return facts


def _check_tokens(rows: Rows, source: ModelSource, facts: Facts | None) -> Any | None:
    """The rows of the tokenizer; returns it where it can be used."""
    names = ("tokenizer", "end tokens", "chat template")
    if facts is None:
        for name in names:
            rows.add(skipped(name, "config.json is not understood"))
        return None
    vocab_size, ends, stops = facts.vocab_size, facts.config_ends, facts.generation_ends
    try:
        tokenizer = load_tokenizer(source)
    except Exception as error:  # libraries raise what they like about a damaged file
        rows.add(failure("tokenizer", error))
        tokenizer = None
    else:
        if tokenizer is None:
            rows.add(skipped("tokenizer", "the directory has no tokenizer_config.json"))
    if tokenizer is not None:
        rows.run("tokenizer", lambda: check_tokenizer(tokenizer, vocab_size))
    rows.run("end tokens", lambda: check_ends(tokenizer, ends, stops, vocab_size))
    if tokenizer is None:
        rows.add(skipped("chat template", "there is no tokenizer"))
    else:
        rows.run("chat template", lambda: check_template(tokenizer, stops or ends))
    return tokenizer


def _check_numbers(rows: Rows, machine: Machine, tokenizer: Any | None) -> None:
    granted = granted_bytes(0, machine.device)
    try:
        check_room(machine.directory, machine.device, machine.dtype)
        model = open_model(
            machine.directory,
            machine.modelling,
            device=machine.device,
            dtype=machine.dtype,
            uses_triton=choose_triton("auto", machine.device),
            check_bytes=check_bytes(granted),
        )
    except Exception as error:  # ours, and what a device or a library raises
        rows.add(failure("model", error))
        for name in _NUMBERS[1:]:
            rows.add(skipped(name, "the model cannot be opened"))
        return
    rows.add(check_model(model))
    rows.run("memory", partial(check_memory, model, machine.directory, granted))
    comparisons: list[Comparison] = [Logits(), Greedy()]
    if has_peft():
        comparisons.append(Gradients())
    ready = _our_side(rows, model, tokenizer, comparisons)
    del model
    gc.collect()
    if machine.device.type == "cuda":
        torch.cuda.empty_cache()
    if ready:
        _judge(rows, machine, ready)
    if not has_peft():
        rows.add(skipped("gradients", "peft is not installed: pip install 'weft[verify]'"))


def _our_side(
    rows: Rows, model: BaseModel, tokenizer: Any | None, comparisons: list[Comparison]
) -> list[Comparison]:
    """Our part of everything; returns what the reference is wanted for."""
    pool = make_pool(tokenizer, model.config.vocab_size, _POOL_TOKENS)
    side = Side(model, open_generator(model), tokenizer, make_tenants(model.sites, pool))
    rows.run("isolation", lambda: check_isolation(side))
    rows.run("throughput", lambda: measure_speed(side, pool))
    ready: list[Comparison] = []
    for comparison in comparisons:
        try:
            comparison.compute(side)
        except Exception as error:
            rows.add(failure(comparison.name, error))
        else:
            ready.append(comparison)
    return ready


def _judge(rows: Rows, machine: Machine, comparisons: list[Comparison]) -> None:
    try:
        reference = Reference(machine.directory, machine.device, machine.dtype)
    except Exception as error:  # libraries raise what they like
        for comparison in comparisons:
            rows.add(failure(comparison.name, error))
        return
    for comparison in comparisons:
        rows.run(comparison.name, partial(comparison.judge, reference))
