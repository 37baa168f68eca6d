"""Put a worker together: model, memory plan, adapters, sampler, compute loop."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...client.limits import limit
from ...client.messages import ModelCard
from ...client.worker_messages import SiteSpan
from ..adapters.head_form import open_head
from ..adapters.store import AdapterStore
from ..files.sites import to_spans
from ..files.store import CheckpointFiles
from ..hosted.model import PackedModel, SequentialHosted
from ..model.base import BaseModel
from ..sampling.base_generator import BaseGenerator
from ..sampling.generate import Generator
from ..sampling.kv_cache import KVCache
from ..sampling.sequential import SequentialGenerator
from ..sampling.stopping import Decode
from ..trace import Trace
from .base_models import open_model, why_not_native
from .commands import ModelLimits
from .compute import Compute
from .config import WorkerConfig
from .controls import Controls
from .devices import check_bytes, choose_device, choose_dtype, choose_triton, granted_bytes
from .memory import MemoryPlan
from .model_names import TINY, ModelSource, check_files, find_model
from .network import Network
from .planning import (
    NEVER,
    PAGE_SIZE,
    Wishes,
    check_hosted,
    plan_hosted,
    plan_native,
)
from .progress import PREPARING, READING, WARMING, LoadingProgress
from .runs import RunTable
from .scheduler import Scheduler
from .threads import StepThreads
from .train import Trainer
from .warming import warm_up

WARMING_PAGES = 8
MAX_PAGES = 16384  # unless configured: 262,144 tokens, more than a small model can use
BATCHES_OF_CREDIT = 3  # what the broker may send ahead
BACKWARD_WEIGHT = 3  # weighted tokens of a forward_backward token


@dataclass(frozen=True, slots=True)
class LoadedWorker:
    """A worker that can start."""

    compute: Compute
    card: ModelCard
    limits: ModelLimits
    train_credit: int
    sample_credit: int
    sites: list[SiteSpan]  # where an adapter can sit


def load_compute(
    config: WorkerConfig,
    network: Network,
    trace: Trace,
    progress: LoadingProgress,
    *,
    is_own_process: bool,
) -> LoadedWorker:
    """Load the model, allocate what the memory plan grants, and do each kind of step once.

    `progress` is told how far it is.

    Raises:
        WeftError: the model is unknown, incomplete, unsupported or too large, or the device is not
            there; the message is meant for the user.
    """
    device = choose_device(config.device)
    dtype = choose_dtype(config.dtype, device)
    uses_triton = choose_triton(config.kernels, device)
    source = find_model(config.model)
    check_files(source.directory)
    model, plan = _open(config, source.directory, device, dtype, uses_triton, progress)
    progress.report(PREPARING)
    is_sequential = model.runs_on == "sequential"
    store = AdapterStore(
        model.sites,
        device=device,
        dtype=dtype,
        state_bytes=plan.adapter_state,
        weights_bytes=plan.adapter_weights,
        uses_triton=uses_triton,
    )
    decode = load_decode(source)
    num_pages = min(plan.num_pages, config.max_pages or MAX_PAGES)
    runs = RunTable(store, model.config.eos_token_ids)
    tokenizer_name = "" if decode is None else str(source.directory)
    threads = StepThreads(is_own_process and device.type == "cpu" and not config.is_deterministic)
    compute = Compute(
        network=network,
        scheduler=Scheduler(
            plan.batch_tokens,
            workspace_bytes=NEVER if uses_triton else plan.adapter_workspace,
            fused=config.is_fused,
        ),
        runs=runs,
        trainer=_trainer(config, plan, model, runs, trace),
        generator=_generator(config, plan, model, store, num_pages, decode),
        controls=Controls(runs, CheckpointFiles(config.state_path), source.name, tokenizer_name),
        trace=trace,
        threads=threads,
        macs_per_row=float(max(site.in_features * site.out_features for site in model.sites)),
    )
    limits = ModelLimits(
        vocab_size=model.config.vocab_size,
        max_context=model.config.max_context,
        unit_tokens=1 if is_sequential else config.unit_tokens,
        max_datum_tokens=min(model.config.max_context, plan.max_datum_tokens),
    )
    progress.report(WARMING)
    threads.prepare(0)
    _warm(config, plan, model, store, decode, limits.max_datum_tokens)
    batch_tokens = config.batch_tokens if is_sequential else plan.batch_tokens
    return LoadedWorker(
        compute=compute,
        card=_card(source, model, tokenizer_name),
        limits=limits,
        train_credit=BATCHES_OF_CREDIT * BACKWARD_WEIGHT * batch_tokens,
        sample_credit=2 * num_pages * PAGE_SIZE,
        sites=to_spans(model.sites),
    )


def load_decode(source: ModelSource) -> Decode | None:
    """What turns the model's tokens into text, or None when its directory has no tokenizer."""
    if source.name == TINY:  # its class adds nothing to the file, and costs 0.7 s of imports
        from tokenizers import Tokenizer

        plain = Tokenizer.from_file(str(source.directory / "tokenizer.json"))
        return partial(plain.decode, skip_special_tokens=False)
    tokenizer = load_tokenizer(source)
    return tokenizer and partial(tokenizer.decode, clean_up_tokenization_spaces=False)


def load_tokenizer(source: ModelSource) -> Any | None:
    """The model's tokenizer, or None when its directory has none."""
    if not (source.directory / "tokenizer_config.json").is_file():
        return None
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(source.directory))


def _open(
    config: WorkerConfig,
    directory: Path,
    device: torch.device,
    dtype: torch.dtype,
    uses_triton: bool,
    progress: LoadingProgress,
) -> tuple[BaseModel, MemoryPlan]:
    """The model and its share of the memory; what cannot fit is refused before it is read."""
    wishes = Wishes(
        granted_bytes(config.memory_bytes, device), dtype, config.batch_tokens, uses_triton
    )
    plan: MemoryPlan | None = None
    if why_not_native(directory, config.modelling):
        check_hosted(wishes, directory)
        progress.report(READING)
    else:
        plan = plan_native(wishes, directory)
    model = open_model(
        directory,
        config.modelling,
        device=device,
        dtype=dtype,
        is_deterministic=config.is_deterministic,
        uses_triton=uses_triton,
        check_bytes=check_bytes(wishes.granted_bytes),
        on_progress=progress.read,
    )
    if isinstance(model, PackedModel | SequentialHosted):
        plan = plan_hosted(wishes, directory, model)
    assert plan is not None
    return model, plan


def _trainer(
    config: WorkerConfig, plan: MemoryPlan, model: BaseModel, runs: RunTable, trace: Trace
) -> Trainer:
    return Trainer(
        model,
        runs,
        open_head(model, uses_triton=runs.store.uses_triton),
        trace,
        # One sequence a pass: nothing stands beside it that could change a bit.
        is_deterministic=config.is_deterministic and model.runs_on != "sequential",
        recompute_above_tokens=plan.recompute_above_tokens,
    )


def _generator(
    config: WorkerConfig,
    plan: MemoryPlan,
    model: BaseModel,
    store: AdapterStore,
    num_pages: int,
    decode: Decode | None,
) -> BaseGenerator:
    """The sampler; the states of a sequential model take what so many pages would."""
    if isinstance(model, SequentialHosted):
        state_bytes = plan.kv * num_pages // plan.num_pages if config.max_pages else plan.kv
        return SequentialGenerator(model, store, state_bytes=state_bytes, decode=decode)
    cache = KVCache(
        model.config,
        num_pages=num_pages,
        page_size=PAGE_SIZE,
        device=model.device,
        dtype=model.dtype,
    )
    return Generator(model, store, cache, decode=decode, is_deterministic=config.is_deterministic)


def _card(source: ModelSource, model: BaseModel, tokenizer: str) -> ModelCard:
    families = {site.family for site in model.sites}
    return ModelCard(
        name=source.name,
        aliases=list(source.aliases),
        vocab_size=model.config.vocab_size,
        max_context=model.config.max_context,
        max_rank=limit("rank"),
        tokenizer=tokenizer,
        width=model.config.width,
        model_type=model.config.model_type,
        runs_on=model.runs_on,
        targets=[family for family in ("attn", "mlp", "unembed") if family in families],
        notes=list(model.notes),
    )


def _warm(
    config: WorkerConfig,
    plan: MemoryPlan,
    model: BaseModel,
    store: AdapterStore,
    decode: Decode | None,
    max_tokens: int,
) -> None:
    """Warm up with a trainer, a sampler and a table of runs that nobody else will use."""
    runs = RunTable(store, model.config.eos_token_ids)
    trainer = _trainer(config, plan, model, runs, Trace())
    generator = _generator(config, plan, model, store, WARMING_PAGES, decode)
    compiles = store.uses_triton and store.device.type == "cuda"
    warm_up(trainer, generator, runs, max_tokens, compiles=compiles)
