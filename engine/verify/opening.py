"""Open a base model for the probes, and a generator small enough to stand beside it."""

from pathlib import Path

import torch

from ..adapters.store import AdapterStore
from ..hosted.load import load_hosted
from ..hosted.model import PackedModel, SequentialHosted
from ..model.base import BaseModel
from ..model.decoder import Decoder
from ..sampling.base_generator import BaseGenerator
from ..sampling.generate import Generator
from ..sampling.kv_cache import KVCache
from ..sampling.sequential import SequentialGenerator
from .record import Check, passed

_PAGE_SIZE = 16  # tokens
_PAGES = 128
_STATE_BYTES = 4 << 30  # what the states of some short sequences may take


def open_generator(model: BaseModel) -> BaseGenerator:
    """A generator for a few short sequences of the bare base model."""
    store = AdapterStore(
        model.sites, device=model.device, dtype=model.dtype, state_bytes=0, weights_bytes=0
    )
    if model.runs_on == "sequential":
        return SequentialGenerator(model, store, state_bytes=_STATE_BYTES)
    cache = KVCache(
        model.config,
        num_pages=_PAGES,
        page_size=_PAGE_SIZE,
        device=model.device,
        dtype=model.dtype,
    )
    return Generator(model, store, cache)


def open_model(
    directory: Path, is_native: bool, device: torch.device, dtype: torch.dtype
) -> BaseModel:
    """The model as a worker opens it; raises WeftError when it cannot be run."""
    if is_native:
        return Decoder.load(directory, device=device, dtype=dtype)
    return load_hosted(directory, device=device, dtype=dtype)


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
    if isinstance(model, PackedModel | SequentialHosted) and model.frozen:
        detail += f"; frozen: {', '.join(model.frozen)}"
    return passed("model", f"runs on {model.runs_on}", detail)
