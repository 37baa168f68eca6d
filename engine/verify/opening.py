"""Rows about the opened base model, and a generator small enough to stand beside it."""

from pathlib import Path

import torch

from ...client.errors import BadRequest
from ..adapters.store import AdapterStore
from ..hosted.checkpoint import checkpoint_parameters
from ..hosted.model import PackedModel, SequentialHosted
from ..model.base import BaseModel
from ..sampling.base_generator import BaseGenerator
from ..sampling.generate import Generator
from ..sampling.kv_cache import KVCache
from ..sampling.sequential import SequentialGenerator
from ..worker.config import WorkerConfig
from ..worker.devices import choose_triton, free_bytes
from ..worker.planning import Wishes, plan_hosted, plan_native
from .record import Check, passed

_PAGE_SIZE = 16  # tokens
_PAGES = 128
_STATE_BYTES = 4 << 30  # what the states of some short sequences may take


def open_generator(model: BaseModel) -> BaseGenerator:
    """A generator for a few short sequences of the bare base model."""
    store = AdapterStore(
        model.sites,
        device=model.device,
        dtype=model.dtype,
        state_bytes=0,
        weights_bytes=0,
        uses_triton=model.uses_triton,
    )
    if isinstance(model, SequentialHosted):
        return SequentialGenerator(model, store, state_bytes=_STATE_BYTES)
    cache = KVCache(
        model.config,
        num_pages=_PAGES,
        page_size=_PAGE_SIZE,
        device=model.device,
        dtype=model.dtype,
    )
    return Generator(model, store, cache)


def check_room(directory: Path, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse weights that do not fit into what is free, before they are read; raises BadRequest."""
    needed, free = checkpoint_parameters(directory) * dtype.itemsize, free_bytes(device)
    if needed > free:
        kind = str(dtype).removeprefix("torch.")
        raise BadRequest(
            f"its weights take {needed / 1e9:.3g} GB in {kind}, and {free / 1e9:.3g} are free",
            "out_of_memory",
        )


def check_model(model: BaseModel) -> Check:
    """The weights are loaded; says which code runs them and what can be trained."""
    config = model.config
    counts: dict[str, int] = {}
    for site in model.sites:
        counts[site.family] = counts.get(site.family, 0) + 1
    trained = ", ".join(f"{family} {number}" for family, number in counts.items())
    detail = (
        f"{config.num_layers} layers, {config.vocab_size} tokens, context {config.max_context}; "
        f"linears that take adapters: {trained}"
    )
    return passed("model", f"runs on {model.runs_on}", "; ".join([detail, *model.notes]))


def check_memory(model: BaseModel, directory: Path, granted_bytes: int) -> Check:
    """The memory plan of a worker on this device, which a server would refuse without."""
    uses_triton = choose_triton("auto", model.device)
    wishes = Wishes(granted_bytes, model.dtype, WorkerConfig.batch_tokens, uses_triton)
    if isinstance(model, PackedModel | SequentialHosted):
        plan = plan_hosted(wishes, directory, model)
    else:
        plan = plan_native(wishes, directory)
    adapters = plan.adapter_state + plan.adapter_weights + plan.adapter_workspace
    parts = {"adapters": adapters, "activations": plan.activations, "keys and values": plan.kv}
    shares = ", ".join(f"{name} {size / 1e9:.2g}" for name, size in parts.items())
    return passed(
        "memory",
        f"weights {plan.weights / 1e9:.2g} of {granted_bytes / 1e9:.3g} GB",
        f"{shares} GB: train batches of {plan.batch_tokens} tokens, one example of at most "
        f"{min(plan.max_datum_tokens, model.config.max_context)}",
    )
