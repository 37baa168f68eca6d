"""Put a worker together: model, memory plan, adapters, sampler, compute loop."""

import logging
import os
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ...client.errors import BadRequest
from ...client.limits import limit
from ...client.messages import ModelCard, SiteSpan
from ..adapters.head import Head
from ..adapters.store import AdapterStore
from ..files.sites import to_spans
from ..files.store import CheckpointFiles
from ..model.checkpoint_files import checkpoint_bytes
from ..model.config import ModelConfig
from ..model.decoder import Decoder
from ..sampling.generate import Generator
from ..sampling.kv_cache import KVCache
from ..trace import Trace
from .commands import ModelLimits
from .compute import Compute
from .config import WorkerConfig
from .controls import Controls
from .memory import MemoryPlan, MemoryRequest, plan_memory
from .model_names import ModelSource, check_files, find_model
from .network import Network
from .progress import PREPARING, LoadingProgress
from .runs import RunTable
from .scheduler import Scheduler
from .threads import StepThreads
from .train import Trainer

log = logging.getLogger(__name__)

PAGE_SIZE = 16  # tokens
MAX_PAGES = 16384  # unless configured: 262,144 tokens, more than a small model can use
HEAD_CHUNK_ROWS = 256  # rows of logits held at a time
ROW_TILE = 256  # rows of a base matmul in deterministic mode, bench/deterministic.py
BATCHES_OF_CREDIT = 3  # what the broker may send ahead
BACKWARD_WEIGHT = 3  # weighted tokens of a forward_backward token
BUSY_DEVICE_SHARE = 0.5  # of the free host memory a worker on a CPU takes unless told otherwise


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
    """Load the model and allocate what the memory plan grants; `progress` is told how far it is.

    Raises:
        WeftError: the model is unknown, incomplete, unsupported or too large, or the device is not
            there; the message is meant for the user.
    """
    device = choose_device(config.device)
    dtype = choose_dtype(config.dtype, device)
    source = find_model(config.model)
    check_files(source.directory)
    model_config = ModelConfig.from_directory(source.directory)
    plan = _plan(config, model_config, source, device, dtype)
    row_tile = ROW_TILE if config.is_deterministic else 0
    model = Decoder.load(
        source.directory,
        device=device,
        dtype=dtype,
        row_tile=row_tile,
        on_progress=progress.read,
    )
    progress.report(PREPARING)
    sites = model_config.sites()
    store = AdapterStore(
        sites,
        device=device,
        dtype=dtype,
        state_bytes=plan.adapter_state,
        weights_bytes=plan.adapter_weights,
    )
    head = Head(model.head, len(sites) - 1, chunk_rows=HEAD_CHUNK_ROWS)
    tokenizer = load_tokenizer(source)
    num_pages = min(plan.num_pages, config.max_pages or MAX_PAGES)
    cache = KVCache(
        model_config, num_pages=num_pages, page_size=PAGE_SIZE, device=device, dtype=dtype
    )
    generator = Generator(
        model,
        store,
        cache,
        decode=tokenizer and partial(tokenizer.decode, clean_up_tokenization_spaces=False),
        is_deterministic=config.is_deterministic,
    )
    runs = RunTable(store, model_config.eos_token_ids)
    trainer = Trainer(
        model,
        runs,
        head,
        trace,
        is_deterministic=config.is_deterministic,
        recompute_above_tokens=plan.recompute_above_tokens,
    )
    tokenizer_name = "" if tokenizer is None else str(source.directory)
    compute = Compute(
        network=network,
        scheduler=Scheduler(
            plan.batch_tokens, workspace_bytes=plan.adapter_workspace, fused=config.is_fused
        ),
        runs=runs,
        trainer=trainer,
        generator=generator,
        controls=Controls(runs, CheckpointFiles(config.state_path), source.name, tokenizer_name),
        trace=trace,
        threads=StepThreads(
            is_own_process and device.type == "cpu" and not config.is_deterministic
        ),
        macs_per_row=float(max(site.in_features * site.out_features for site in sites)),
    )
    card = ModelCard(
        name=source.name,
        aliases=list(source.aliases),
        vocab_size=model_config.vocab_size,
        max_context=model_config.max_context,
        max_rank=limit("rank"),
        tokenizer=tokenizer_name,
        width=model_config.width,
        model_type=model_config.model_type,
    )
    limits = ModelLimits(
        vocab_size=model_config.vocab_size,
        max_context=model_config.max_context,
        unit_tokens=config.unit_tokens,
        max_datum_tokens=min(model_config.max_context, plan.max_datum_tokens),
    )
    return LoadedWorker(
        compute=compute,
        card=card,
        limits=limits,
        train_credit=BATCHES_OF_CREDIT * BACKWARD_WEIGHT * plan.batch_tokens,
        sample_credit=2 * num_pages * PAGE_SIZE,
        sites=to_spans(sites),
    )


def choose_device(name: str) -> torch.device:
    """The device of this name; "" takes cuda when there is one. Raises BadRequest."""
    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        reason = (
            "this torch is built without CUDA"
            if torch.version.cuda is None
            else "no CUDA device is visible"
        )
        raise BadRequest(f"device cuda was asked for, but {reason} (torch {torch.__version__})")
    return torch.device(name or ("cuda" if has_cuda else "cpu"))


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The compute type of this name; "" is float32 on a CPU and bfloat16 elsewhere."""
    if not name:
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def free_bytes(device: torch.device) -> int:
    """Memory that is free now: of the device, or of the host for a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    with open("/proc/meminfo", encoding="ascii") as lines:
        fields = dict(line.split(":", 1) for line in lines)
    available = int(fields["MemAvailable"].split()[0]) * 1024
    return min(available, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def load_tokenizer(source: ModelSource) -> Any | None:
    """The model's tokenizer, or None when its directory has none."""
    if not (source.directory / "tokenizer_config.json").is_file():
        return None
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(source.directory))


def _plan(
    config: WorkerConfig,
    model: ModelConfig,
    source: ModelSource,
    device: torch.device,
    dtype: torch.dtype,
) -> MemoryPlan:
    free = free_bytes(device)
    wanted = config.memory_bytes or (
        int(free * BUSY_DEVICE_SHARE) if device.type == "cpu" else free
    )
    if config.memory_bytes > free:
        raise BadRequest(
            f"memory_bytes is {config.memory_bytes / 1e9:.1f} GB and {free / 1e9:.1f} are free",
            "out_of_memory",
        )
    item = dtype.itemsize
    kv_width = 2 * model.num_kv_heads * model.head_dim
    q_width = model.num_heads * model.head_dim
    # Kept for backward: the two norms' inputs and outputs, q, k, v twice (before and after RoPE and
    # packing), attention's output, gate, up and their product.
    kept = 6 * model.width + 3 * (q_width + kv_width) + 2 * q_width + 4 * model.ffn_width
    request = MemoryRequest(
        weights=checkpoint_bytes(source.directory, dtype),
        adapter_parameter_bytes=item,
        activation_bytes_per_token=kept * model.num_layers * item,
        checkpointed_bytes_per_token=(model.num_layers * model.width + kept) * item,
        workspace=2 * HEAD_CHUNK_ROWS * model.vocab_size * 4,
        page_bytes=PAGE_SIZE * model.num_layers * kv_width * item,
        batch_tokens=config.batch_tokens,
        max_context=min(model.max_context, 4096),
        page_size=PAGE_SIZE,
    )
    plan = plan_memory(wanted, request)
    log.info("memory plan: %s", plan)
    return plan
