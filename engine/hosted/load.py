"""Load any causal language model of transformers as a base model of ours."""

import logging
from pathlib import Path

import torch

from .attention import register
from .checkpoint import load_module, packing
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


def load_hosted(
    directory: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    is_deterministic: bool = False,
) -> PackedModel | SequentialHosted:
    """Load a checkpoint, swap its linears, and run it packed where its code allows.

    Whatever cannot be packed runs a sequence at a time, as everything does in deterministic mode:
    then nothing stands beside a sequence that could change its bits. Either way the swapped model
    has to agree with what its own code computed before.

    Raises:
        NotFound, BadRequest: the files are damaged or of no causal language model, or the model
            cannot be run faithfully; the message says why.
    """
    directory = Path(directory)
    register()
    module = load_module(directory, device=torch.device(device), dtype=dtype)
    facts = read_facts(module, directory)
    candidates, frozen = find_candidates(module)
    probes = probe_tokens(module.config, facts.vocab_size, torch.device(device))
    reference = observe(module, probes, [each.name for each in candidates])
    last = head_site(module)
    head = dense(module.get_output_embeddings(), reference.scale)
    module.set_submodule(last.name, HeadInput(module.get_output_embeddings()))
    swapped = Swapped(module, candidates, frozen)
    swapped.keep(reference.clean, _NOT_ONCE)
    parts = Parts(module, facts, [], head, reference.scale, reference.softcap)
    model: PackedModel | SequentialHosted
    slow = ""
    try:
        if is_deterministic:
            raise Unpackable("deterministic mode")
        parts.sites = [*swapped.sites(), last]
        model, reached = try_packing(parts, reference, probes)
    except Unpackable as reason:
        slow = f"computed a sequence at a time: {reason}"
        swapped.keep(reference.clean_cached, _NOT_ONCE)
        parts.facts = facts
        parts.sites = [*swapped.sites(), last]
        model, reached = check_sequential(parts, reference, probes)
    swapped.keep({model.sites[index].name for index in reached}, "the output ignores it")
    model.sites[:] = [*swapped.sites(), last]
    lines = [slow] * bool(slow) + summary(frozen)
    if method := packing(directory):
        lines.append(f"its {method} weights are held as {str(dtype).removeprefix('torch.')}")
    for line in lines:
        log.info("%s: %s", directory.name, line)
    model.notes += lines[:_MAX_NOTES]
    if len(lines) > _MAX_NOTES:
        model.notes.append(f"and {len(lines) - _MAX_NOTES} more, in the worker's log")
    return model
