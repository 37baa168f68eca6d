"""PEFT's adapter_model.safetensors: its names and shapes against those of a saved state.

    base_model.model.<site>.lora_A.weight [R, D]      <site>.lora_a
    base_model.model.<site>.lora_B.weight [O, R]      <site>.lora_b

Both are row-major and in the same orientation, so values move as they are.
Source: peft's "checkpoint format" guide; vLLM reads the same names, vllm/lora/lora_model.py.
"""

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from ...client.errors import BadRequest
from ...client.worker_messages import SiteSpan
from .peft_config import PeftConfig
from .sites import module_names, to_modules
from .tensors import Tensor

PREFIX = "base_model.model."
DTYPES = ("F32", "F16", "BF16")
CHUNK_ELEMENTS = 1 << 20
_KEY = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
# What else may stand in a file of PEFT, by a part of its name.
_OTHERS = (
    ("lora_embedding_", "adapters of embeddings are not served"),
    ("lora_magnitude_vector", "DoRA is not served"),
    ("modules_to_save", "whole modules are not trained"),
    (".bias", "biases are not trained"),
    (".base_layer.", "it is base weights; save the adapter with save_embedding_layers=False"),
    ("embed_tokens.weight", "it is base weights; save with save_embedding_layers=False"),
    ("lm_head.weight", "it is base weights; save with save_embedding_layers=False"),
)


@dataclass(frozen=True, slots=True)
class StateTensor:
    """One tensor of the state that an adapter becomes."""

    name: str
    shape: tuple[int, ...]
    source: Tensor | None  # None: zeros, because the adapter leaves the module alone


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter that fits its base model."""

    config: PeftConfig
    families: frozenset[str]  # "attn", "mlp", "unembed"
    unembed_site: str  # "" when the unembedding has none
    tensors: tuple[StateTensor, ...]


def to_key(name: str) -> str:
    """PEFT's name of a state's tensor."""
    site, _, half = name.rpartition(".lora_")
    return f"{PREFIX}{site}.lora_{half.upper()}.weight"


def match(config: PeftConfig, tensors: Mapping[str, Tensor], spans: Sequence[SiteSpan]) -> Adapter:
    """Fit an adapter's tensors to the sites of its base model.

    A module of a trained family that the adapter leaves out gets zeros in both halves: it adds
    nothing, its gradients are zero, and so it stays.

    Raises:
        BadRequest: a tensor too many or too few, a wrong shape or dtype, or some layers only.
    """
    halves = _halves(tensors)
    modules = to_modules(spans)
    for module, found in halves.items():
        span = modules.get(module)
        if span is None:
            ends = ", ".join(sorted({span.name.rpartition(".")[2] for span in spans}))
            raise BadRequest(f"the adapter has {module!r}; this model has sites in {ends}")
        _check_halves(module, found, config.rank, span)
    _check_layers(halves.keys(), spans)
    _check_targets(config.targets, halves.keys(), modules)
    families = frozenset(modules[module].family for module in halves)
    made = []
    for module, span in modules.items():
        if span.family in families:
            found = halves.get(module, {})
            a_shape, b_shape = _shapes(config.rank, span)
            made.append(StateTensor(f"{module}.lora_a", a_shape, found.get("A")))
            made.append(StateTensor(f"{module}.lora_b", b_shape, found.get("B")))
    unembed = [module for module, span in modules.items() if span.family == "unembed"]
    has_unembed = "unembed" in families
    return Adapter(config, families, unembed[0] if has_unembed else "", tuple(made))


def read_values(handle: BinaryIO, tensor: StateTensor) -> Iterator[NDArray[np.float32]]:
    """The values of a state's tensor, in pieces, as float32; 16-bit ones are converted exactly.

    Raises:
        BadRequest: `non_finite`, a value is not.
    """
    left = int(np.prod(tensor.shape))
    if tensor.source is not None:
        handle.seek(tensor.source.start)
    while left:
        count = min(left, CHUNK_ELEMENTS)
        left -= count
        if tensor.source is None:
            yield np.zeros(count, np.float32)
            continue
        values = _widen(handle, tensor.source.dtype, count)
        if not np.isfinite(values).all():
            raise BadRequest(f"{to_key(tensor.name)!r} is not finite", "non_finite")
        yield values


def _widen(handle: BinaryIO, dtype: str, count: int) -> NDArray[np.float32]:
    if dtype == "F32":
        return np.frombuffer(handle.read(4 * count), "<f4").astype(np.float32, copy=False)
    raw = handle.read(2 * count)
    if dtype == "F16":
        return np.frombuffer(raw, "<f2").astype(np.float32)
    return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)


def _halves(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The tensors of an adapter by module and half."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        fit = _KEY.fullmatch(key)
        if fit is None:
            for part, why in _OTHERS:
                if part in key:
                    raise BadRequest(f"the adapter has {key[:200]!r}: {why}")
            raise BadRequest(f"{key[:200]!r} is no tensor of a LoRA adapter")
        found.setdefault(fit[1], {})[fit[2]] = tensor
    if not found:
        raise BadRequest("the adapter has no tensors")
    return found


def _shapes(rank: int, span: SiteSpan) -> tuple[tuple[int, int], tuple[int, int]]:
    return (rank, span.in_features), (span.out_features, rank)


def _check_halves(module: str, found: Mapping[str, Tensor], rank: int, span: SiteSpan) -> None:
    for half, shape in zip("AB", _shapes(rank, span), strict=True):
        key = f"{PREFIX}{module}.lora_{half}.weight"
        tensor = found.get(half)
        if tensor is None:
            raise BadRequest(f"the adapter lacks {key!r}")
        if tensor.shape != shape:
            raise BadRequest(f"{key!r} is {tensor.shape}, not {shape}")
        if tensor.dtype not in DTYPES:
            raise BadRequest(f"{key!r} is {tensor.dtype}, not one of {', '.join(DTYPES)}")


def _check_layers(present: Set[str], spans: Sequence[SiteSpan]) -> None:
    names: dict[str, list[str]] = {}
    for span in spans:
        names.setdefault(span.name, []).extend(module_names(span))
    for modules in names.values():
        lacking = [module for module in modules if module not in present]
        if lacking and len(lacking) < len(modules):
            raise BadRequest(
                f"the adapter lacks {lacking[0]!r}, which it has in other layers; an adapter "
                "covers all layers"
            )


def _check_targets(
    targets: Sequence[str] | None, present: Set[str], modules: Mapping[str, SiteSpan]
) -> None:
    """Every name must have tensors, and every tensor a name. A name may mean several modules."""
    if targets is None:
        return
    lacking: dict[str, str] = {}  # names of modules that have no tensors, and one such module each
    found: set[str] = set()
    for module in modules:
        parts = module.split(".")
        ends = {".".join(parts[start:]) for start in range(len(parts))}.intersection(targets)
        if module not in present:
            lacking |= dict.fromkeys(ends, module)
        elif ends:
            found |= ends
        else:
            raise BadRequest(f"the adapter has {module!r}, which is not among its target_modules")
    for name in sorted(lacking.keys() - found):
        raise BadRequest(
            f"target_modules has {name!r}, and the adapter has no tensors of {lacking[name]!r}"
        )
