"""Open a base model by our own decoder, or by transformers' code where ours is not built for it."""

import logging
from collections.abc import Callable
from pathlib import Path

import torch

from ...client.errors import BadRequest
from ..hosted.load import load_hosted
from ..model.base import BaseModel
from ..model.config import ModelConfig
from ..model.decoder import Decoder
from ..model.errors import NotBuilt

log = logging.getLogger(__name__)

ROW_TILE = 256  # rows of a base matmul in deterministic mode, bench/deterministic.py


def open_model(
    directory: Path,
    modelling: str = "auto",
    *,
    device: torch.device,
    dtype: torch.dtype,
    is_deterministic: bool = False,
    uses_triton: bool = False,
    check_bytes: int = 0,
    on_progress: Callable[[float], None] = lambda fraction: None,
) -> BaseModel:
    """Load a model.

    Args:
        modelling: "native" is our own decoder, "transformers" its code, "auto" the former where
            it is built for the model.
        uses_triton: our own decoder computes by the Triton kernels.
        check_bytes: see `load_hosted`.
        on_progress: told how much of the weights is read, by our own decoder only.

    Raises:
        NotFound, BadRequest: the files are damaged, or the code asked for does not run the model.
    """
    reason = why_not_native(directory, modelling)
    if not reason:
        row_tile = ROW_TILE if is_deterministic else 0
        return Decoder.load(
            directory,
            device=device,
            dtype=dtype,
            row_tile=row_tile,
            uses_triton=uses_triton,
            on_progress=on_progress,
        )
    log.info("%s runs by transformers' code: %s", directory, reason)
    try:
        return load_hosted(
            directory,
            device=device,
            dtype=dtype,
            is_deterministic=is_deterministic,
            check_bytes=check_bytes,
        )
    except BadRequest as error:
        raise BadRequest(f"{error} (our own decoder does not run it: {reason})") from error


def why_not_native(directory: Path, modelling: str = "auto") -> str:
    """Why transformers' code is to run a model; "" when our own decoder is.

    Raises:
        NotFound, BadRequest: config.json is damaged, or asks for what the decoder that was
            insisted on is not built for.
    """
    if modelling == "transformers":
        return "transformers was asked for"
    try:
        ModelConfig.from_directory(directory)
    except NotBuilt as error:
        if modelling == "native":
            raise
        return str(error)
    return ""
