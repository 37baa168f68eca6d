"""Weights of a Hugging Face directory: which tensors there are, and reading them to a device.

Only safetensors are read. The files are memory-mapped; each tensor is copied once, straight to
its device and dtype, so that a later change of the file cannot change a served model.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...client.errors import BadRequest, NotFound
from .config import ModelConfig, linear_name
from .rope import rope_bytes

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_DTYPES = ("BF16", "F16", "F32", "F64")
_HEAD = "lm_head.weight"
_EMBED = "model.embed_tokens.weight"


def checkpoint_bytes(path: str | Path, dtype: torch.dtype) -> int:
    """Bytes of the base weights and the tables of positions on the device, from config.json alone."""
    config = ModelConfig.from_directory(path)
    return config.num_parameters * dtype.itemsize + rope_bytes(config, dtype)


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor a checkpoint of this config holds."""
    shapes: dict[str, tuple[int, ...]] = {_EMBED: (config.vocab_size, config.width)}
    has_bias = {
        **dict.fromkeys("qkv", config.has_qkv_bias),
        "o": config.has_o_bias,
        **dict.fromkeys(("gate", "up", "down"), config.has_mlp_bias),
    }
    for site in config.sites()[:-1]:
        name = linear_name(site.layer, site.module)
        shapes[f"{name}.weight"] = (site.out_features, site.in_features)
        if has_bias[site.module]:
            shapes[f"{name}.bias"] = (site.out_features,)
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}"
        shapes[f"{prefix}.input_layernorm.weight"] = (config.width,)
        shapes[f"{prefix}.post_attention_layernorm.weight"] = (config.width,)
        if config.has_qk_norm:
            shapes[f"{prefix}.self_attn.q_norm.weight"] = (config.head_dim,)
            shapes[f"{prefix}.self_attn.k_norm.weight"] = (config.head_dim,)
    shapes["model.norm.weight"] = (config.width,)
    if not config.is_tied:
        shapes[_HEAD] = (config.vocab_size, config.width)
    return shapes


def read_weights(
    path: str | Path,
    config: ModelConfig,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    on_progress: Callable[[float], None] = lambda fraction: None,
) -> dict[str, Tensor]:
    """Read every tensor of `expected_tensors`, checked before the first byte is copied.

    A tied checkpoint may carry the unembedding as well, if it equals the embedding. `on_progress`
    is told the fraction of the files' bytes that has been read, after each tensor.

    Raises:
        NotFound, BadRequest: as of `check_tensors`; or the repeated unembedding differs.
    """
    weights: dict[str, Tensor] = {}
    files = check_tensors(path, config)
    total, done = sum(file.stat().st_size for file in files), 0
    on_progress(0.0)
    for file, names in files.items():
        with opened(file) as tensors:
            for name in names:
                mapped = tensors.get_tensor(name)
                weights[name] = _copy(mapped, device, dtype)
                done += mapped.nbytes
                on_progress(done / total)
    repeated = weights.pop(_HEAD, None) if config.is_tied else None
    if repeated is not None and not torch.equal(repeated, weights[_EMBED]):
        raise BadRequest(f"{path} ties the embeddings, yet {_HEAD} differs from {_EMBED}")
    return weights


def check_tensors(path: str | Path, config: ModelConfig) -> dict[Path, list[str]]:
    """The tensors of each file, all those of `expected_tensors` and no others.

    Raises:
        NotFound: there is no safetensors file, or the index names one that does not exist.
        BadRequest: a tensor is missing, unknown, of another shape or dtype, or a file is damaged.
    """
    path = Path(path)
    expected = expected_tensors(config)
    files = tensors_by_file(path)
    found = {name for names in files.values() for name in names}
    extra = {_HEAD} & found if config.is_tied else set()
    _check_names(path, set(expected), found - extra)
    for file, names in files.items():
        with opened(file) as tensors:
            for name in names:
                shape = expected.get(name, expected[_EMBED])
                _check_form(file, name, tensors.get_slice(name), shape)
    return files


def tensors_by_file(path: Path) -> dict[Path, list[str]]:
    """The tensors each file really holds; old rotary buffers are left out.

    Raises:
        NotFound: there is no safetensors file, or the index names one that does not exist.
        BadRequest: a file is damaged, or two hold the same tensor.
    """
    files: dict[Path, list[str]] = {}
    for file in _files(path):
        if not file.is_file():
            raise NotFound(f"{file} does not exist, though {_INDEX} names it")
        with opened(file) as tensors:
            held = list(tensors.keys())
        names = [name for name in held if not name.endswith("rotary_emb.inv_freq")]
        for other, others in files.items():
            if repeated := set(names) & set(others):
                raise BadRequest(f"{other} and {file} both hold {_listed(repeated)}")
        files[file] = names
    return files


def _files(path: Path) -> list[Path]:
    if not (path / _INDEX).is_file():
        if (path / _SINGLE).is_file():
            return [path / _SINGLE]
        raise NotFound(f"{path} holds neither {_SINGLE} nor {_INDEX}")
    try:
        index = json.loads((path / _INDEX).read_bytes())
        names = sorted(set(index["weight_map"].values()), key=str)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadRequest(f"{path / _INDEX} is not an index of safetensors: {error!r}") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise BadRequest(f"{path / _INDEX} names {name!r}, which is not a file beside it")
    return [path / name for name in names]


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """Map a safetensors file; damage is reported as BadRequest with the file's name."""
    try:
        with safe_open(file, framework="pt", device="cpu") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise BadRequest(f"{file} cannot be read: {error}") from error


def _check_names(path: Path, expected: set[str], found: set[str]) -> None:
    if missing := expected - found:
        raise BadRequest(f"{path} lacks {len(missing)} tensors: {_listed(missing)}")
    if unknown := found - expected:
        raise BadRequest(f"{path} holds {len(unknown)} unknown tensors: {_listed(unknown)}")


def _check_form(file: Path, name: str, form: Any, shape: tuple[int, ...]) -> None:
    if form.get_dtype() not in _DTYPES:
        raise BadRequest(f"{name} in {file} is {form.get_dtype()}, which is not supported")
    if tuple(form.get_shape()) != shape:
        raise BadRequest(f"{name} in {file} has shape {form.get_shape()}, not {list(shape)}")


def _copy(mapped: Tensor, device: torch.device | str, dtype: torch.dtype) -> Tensor:
    return torch.empty(mapped.shape, device=device, dtype=dtype).copy_(mapped)


def _listed(names: set[str]) -> str:
    first = sorted(names)[:3]
    return ", ".join(first) + (", ..." if len(names) > len(first) else "")
