"""A checkpoint through transformers: which class runs it, reading it, and typed refusals.

Safetensors only, nothing from the network, no code of the checkpoint.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import torch

from ...client.errors import BadRequest
from ..model.checkpoint_files import opened, tensors_by_file
from ..model.fields import read_json

# How weights are packed that transformers unpacks into a plain type as it reads them, and how many
# of them are in one element of a tensor of this ending.
_UNPACKED = {"mxfp4": ("_blocks", 2)}
_IGNORED = ("rotary_emb.inv_freq",)  # tables that older versions saved


def checkpoint_parameters(directory: Path) -> int:
    """Weights in the safetensors of a directory, by their headers; damage is refused by name."""
    ending, packed = _UNPACKED.get(packing(directory), ("", 1))
    total = 0
    for file, names in tensors_by_file(directory).items():
        with opened(file) as tensors:
            for name in names:
                factor = packed if name.endswith(ending) else 1
                total += factor * prod(tensors.get_slice(name).get_shape())
    return total


def packing(directory: Path) -> str:
    """How a checkpoint's weights are quantised, as config.json says; "" when they are not."""
    stated = read_json(directory / "config.json").get("quantization_config")
    if not stated:
        return ""
    return str(stated.get("quant_method")) if isinstance(stated, dict) else repr(stated)


def read_config(directory: Path) -> Any:
    """The transformers config of a causal language model.

    Raises:
        BadRequest: the file is damaged, names no architecture of transformers, or one that is no
            causal language model, or asks for code of its own or for weights quantised otherwise
            than by `mxfp4`, which are unpacked.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    fields = read_json(directory / "config.json")
    model_type = fields.get("model_type")
    if not isinstance(model_type, str):
        raise BadRequest(f"{directory / 'config.json'} names no model_type")
    if (method := packing(directory)) not in ("", *_UNPACKED):
        raise BadRequest(f"{directory} is quantised ({method}), which is not supported")
    try:
        config = AutoConfig.from_pretrained(
            str(directory), trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # transformers raises what it likes about a config
        if "auto_map" in fields and "trust_remote_code" in str(error):
            raise BadRequest(
                f"model_type {model_type!r} needs code of its own (auto_map), which is never run"
            ) from error
        raise BadRequest(
            f"transformers cannot read {directory / 'config.json'}: {_brief(error)}"
        ) from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise BadRequest(f"model_type {model_type!r} is no causal language model of transformers")
    return config


def load_module(directory: Path, *, device: torch.device, dtype: torch.dtype) -> Any:
    """The module with its weights, frozen and in eval mode.

    Raises:
        BadRequest: a file is damaged, or tensors are missing, unknown or of another shape.
    """
    from transformers import AutoModelForCausalLM, Mxfp4Config

    config = read_config(directory)
    tensors_by_file(directory)
    options: dict[str, Any] = {}
    if packing(directory):
        options["quantization_config"] = Mxfp4Config(dequantize=True)
    try:
        with _quiet():
            module, report = AutoModelForCausalLM.from_pretrained(
                str(directory),
                config=config,
                dtype=dtype,
                trust_remote_code=False,
                local_files_only=True,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # so that the report names them
                **options,
                output_loading_info=True,
            )
    except Exception as error:  # the modelling code raises what it likes
        raise BadRequest(f"transformers cannot load {directory}: {_brief(error)}") from error
    _check_report(directory, report)
    module = module.to(device).eval().requires_grad_(False)
    if device.type == "cpu":  # off the file, which may change; other devices have copies
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data = tensor.data.clone()
    return module


def _check_report(directory: Path, report: dict[str, Any]) -> None:
    for kind, what in (
        ("missing_keys", "lacks tensors"),
        ("mismatched_keys", "holds tensors of another shape"),
        ("unexpected_keys", "holds unknown tensors"),
        ("error_msgs", "cannot be loaded"),
    ):
        names = [
            str(name[0] if isinstance(name, tuple) else name) for name in report.get(kind) or ()
        ]
        names = sorted(name for name in names if not name.endswith(_IGNORED))
        if names:
            listed = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            raise BadRequest(f"{directory} {what} ({len(names)}): {listed}")


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings and no progress bars of transformers."""
    from transformers.utils import logging

    had_bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if had_bars:
            logging.enable_progress_bar()


def _brief(error: Exception) -> str:
    """The first line of what a library said."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"
