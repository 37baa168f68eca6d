"""The files of a checkpoint: that they are whole, fit the config and hold numbers."""

import json
from pathlib import Path

import torch
from torch import Tensor

from ...client.errors import BadRequest
from ..model.checkpoint_files import check_tensors, opened, tensors_by_file
from ..model.config import ModelConfig
from .record import Check, failed, judged, passed

_INDEX = "model.safetensors.index.json"
_CHUNK = 1 << 24  # elements looked at together


def check_files(directory: Path) -> Check:
    """Every safetensors file opens, has its full length and holds what the index says."""
    files = tensors_by_file(directory)
    if misplaced := _misplaced(directory, files):
        return failed("files", misplaced)
    num_tensors = sum(len(names) for names in files.values())
    size = sum(file.stat().st_size for file in files)
    return passed(
        "files", f"{len(files)} files, {size / 1e9:.3g} GB", f"{num_tensors} tensors, as indexed"
    )


def check_shapes(directory: Path, config: ModelConfig) -> Check:
    """Names, shapes and types of all tensors are those that config.json asks for."""
    check_tensors(directory, config)
    tied = "tied" if config.is_tied else "not tied"
    return passed(
        "tensors",
        f"{config.num_parameters:,} parameters",
        f"every tensor of config.json is there, with its shape, and no other; embeddings {tied}",
    )


def check_values(directory: Path) -> Check:
    """No tensor holds NaN or infinity, and no matrix is all zeros, as in a torn download."""
    faults: list[str] = []
    num_values = 0
    for file, names in tensors_by_file(directory).items():
        with opened(file) as tensors:
            for name in names:
                tensor = tensors.get_tensor(name)
                num_values += tensor.numel()
                is_matrix = tensor.dim() > 1 and not name.endswith("bias")
                faults += [f"{name} in {file.name} {fault}" for fault in _faults(tensor, is_matrix)]
    detail = "all finite, no matrix all zeros"
    if faults:
        detail = f"{faults[0]}" + (f", and {len(faults) - 1} more" if len(faults) > 1 else "")
    return judged("values", not faults, f"{num_values:,} values", detail)


def _faults(tensor: Tensor, is_matrix: bool) -> list[str]:
    if not tensor.is_floating_point():
        return []
    num_bad, is_zero = 0, is_matrix
    for chunk in torch.split(tensor.reshape(-1), _CHUNK):
        num_bad += chunk.numel() - int(torch.isfinite(chunk).sum())
        is_zero = is_zero and not bool(chunk.any())
    faults = [f"holds {num_bad} values that are not finite"] if num_bad else []
    return faults + (["is all zeros"] if is_zero else [])


def _misplaced(directory: Path, files: dict[Path, list[str]]) -> str:
    """What the index says that the files do not; "" when they agree."""
    if not (directory / _INDEX).is_file():
        return ""
    stated = json.loads((directory / _INDEX).read_bytes())["weight_map"]
    held = {name: file.name for file, names in files.items() for name in names}
    for name, file in stated.items():
        if not isinstance(name, str) or not isinstance(file, str):
            raise BadRequest(f"{directory / _INDEX} maps {name!r} to {file!r}")
        if held.get(name, file) != file:
            return f"{_INDEX} says that {name} is in {file}; it is in {held[name]}"
    lost = [name for name in stated if name not in held and not name.endswith("inv_freq")]
    if lost:
        return f"{_INDEX} names {lost[0]} in {stated[lost[0]]}, which does not hold it"
    return ""
