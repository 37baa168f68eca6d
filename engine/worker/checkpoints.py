"""States with their tensors: what a worker writes to and reads from the directory of saved states."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ...client.errors import BadRequest, NotFound
from ..files.checkpoint import Checkpoint
from ..files.store import CheckpointFiles

if TYPE_CHECKING:
    from torch import Tensor


def save_tensors(
    files: CheckpointFiles,
    record: Checkpoint,
    tensors: "Mapping[str, Tensor]",
    overwrite: bool = False,
) -> int:
    """Write a state so that it is there whole or not at all; returns its size in bytes.

    Raises:
        Conflict: the name is taken and `overwrite` is false.
    """
    from safetensors.torch import save_file

    def fill(target: Path, metadata: Mapping[str, str]) -> None:
        save_file(dict(tensors), target, metadata=dict(metadata))

    return files.write(record, fill, overwrite)


def load_tensors(files: CheckpointFiles, path: str) -> "tuple[Checkpoint, dict[str, Tensor]]":
    """Read a state; raises NotFound when there is none and BadRequest when it is damaged."""
    from safetensors import SafetensorError, safe_open

    source = files.file(path)
    try:
        with safe_open(source, framework="pt") as opened:  # one file, whatever replaces it now
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        size = sum(tensor.nbytes for tensor in tensors.values())
        return Checkpoint.from_metadata(metadata, path=path, size_bytes=size), tensors
    except FileNotFoundError:
        raise NotFound(f"no checkpoint {path}") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise BadRequest(f"checkpoint {path} is damaged: {error}") from error
