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

_IGNORED = ("rotary_emb.inv_freq",)  # tables that older versions saved


def checkpoint_parameters(directory: Path) -> int:
    """Numbers in the safetensors of a directory, by their headers; damage is refused by name."""
    total = 0
    for file, names in tensors_by_file(directory).items():
        with opened(file) as tensors:
            total += sum(prod(tensors.get_slice(name).get_shape()) for name in names)
    return total


def read_config(directory: Path) -> Any:
    """The transformers config of a causal language model.

    Raises:
        BadRequest: the file is damaged, names no architecture of transformers, or one that is no
            causal language model, or asks for quantised weights or for code of its own.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    fields = read_json(directory / "config.json")
    model_type = fields.get("model_type")
    if not isinstance(model_type, str):
        raise BadRequest(f"{directory / 'config.json'} names no model_type")
    if quantisation := fields.get("quantization_config"):
        method = quantisation.get("quant_method") if isinstance(quantisation, dict) else None
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
    from transformers import AutoModelForCausalLM

    config = read_config(directory)
    tensors_by_file(directory)
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
