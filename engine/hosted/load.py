"""Load any causal language model of transformers as a base model of ours."""

import gc
import logging
from pathlib import Path

import torch

from .attention import register
from .checkpoint import checkpoint_parameters, load_module, packing
from .facts import read_facts
from .linears import HeadInput, Swapped, dense, find_candidates, head_site, summary
from .masks import Unpackable
from .model import PackedModel, Parts, SequentialHosted
from .packed_check import try_packing
from .probes import probe_tokens
from .reference import observe
from .sequence_check import check_sequential

log = logging.getLogger(__name__)

_MAX_NOTES = 16  # lines that users are shown
_NOT_ONCE = "not called once for all rows of a pass"
_CHECK_BYTES = 5  # a weight in float32, and a quarter more for what else there is


def load_hosted(
    directory: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    is_deterministic: bool = False,
    check_bytes: int = 0,
) -> PackedModel | SequentialHosted:
    """Load a checkpoint, swap its linears, and run it packed where its code allows.

    Whatever cannot be packed runs a sequence at a time, as everything does in deterministic mode:
    then nothing stands beside a sequence that could change its bits. Either way the swapped model
    has to agree with what its own code computed before; see `rounding`. In a short type it is
    loaded and checked in float32 first, where a mistake shows that rounding would hide.

    Args:
        check_bytes: what the check in float32 may take; where it needs more there is none.

    Raises:
        NotFound, BadRequest: the files are damaged or of no causal language model, or the model
            cannot be run faithfully; the message says why.
    """
    directory, device = Path(directory), torch.device(device)
    register()
    slow = "deterministic mode" if is_deterministic else ""
    has_chunks = True
    if dtype != torch.float32 and _CHECK_BYTES * checkpoint_parameters(directory) <= check_bytes:
        slow, has_chunks = _check_exactly(directory, device, slow)
    model, _ = _load(directory, device, dtype, slow)
    if isinstance(model, SequentialHosted):
        model.continues_in_chunks &= has_chunks
    return model


def _check_exactly(directory: Path, device: torch.device, slow: str) -> tuple[str, bool]:
    """Load in float32 and let go; returns why it is not packed, and whether chunks continue."""
    model, slow = _load(directory, device, torch.float32, slow)
    has_chunks = not isinstance(model, SequentialHosted) or model.continues_in_chunks
    del model
    gc.collect()  # modules refer to each other
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return slow, has_chunks


def _load(
    directory: Path, device: torch.device, dtype: torch.dtype, slow: str
) -> tuple[PackedModel | SequentialHosted, str]:
    """The model, checked against itself, and why it is not packed; `slow` says so beforehand."""
    module = load_module(directory, device=device, dtype=dtype)
    facts = read_facts(module, directory)
    candidates, frozen = find_candidates(module)
    probes = probe_tokens(module.config, facts.vocab_size, device)
    reference = observe(module, probes, [each.name for each in candidates])
    last = head_site(module)
    head = dense(module.get_output_embeddings(), reference.scale)
    module.set_submodule(last.name, HeadInput(module.get_output_embeddings()))
    swapped = Swapped(module, candidates, frozen)
    swapped.keep(reference.clean, _NOT_ONCE)
    parts = Parts(module, facts, [], head, reference.scale, reference.softcap)
    model: PackedModel | SequentialHosted
    try:
        if slow:
            raise Unpackable(slow)
        parts.sites = [*swapped.sites(), last]
        model, reached = try_packing(parts, reference, probes)
    except Unpackable as reason:
        slow = str(reason)
        swapped.keep(reference.clean_cached, _NOT_ONCE)
        parts.facts = facts
        parts.sites = [*swapped.sites(), last]
        model, reached = check_sequential(parts, reference, probes)
    swapped.keep({model.sites[index].name for index in reached}, "the output ignores it")
    model.sites[:] = [*swapped.sites(), last]
    lines = [f"computed a sequence at a time: {slow}"] * bool(slow) + summary(frozen)
    if method := packing(directory):
        lines.append(f"its {method} weights are held as {str(dtype).removeprefix('torch.')}")
    model.notes += _noted(directory, lines)
    return model, slow


def _noted(directory: Path, lines: list[str]) -> list[str]:
    """Log all lines; returns those that users are shown."""
    for line in lines:
        log.info("%s: %s", directory.name, line)
    more = len(lines) - _MAX_NOTES
    return lines if more <= 0 else [*lines[:_MAX_NOTES], f"and {more} more, in the worker's log"]
