"""Which form of the head serves an engine, and the memory that it takes."""

import torch

from ..model.base import BaseModel
from .head import Head
from .loss_head import LossHead


def open_head(model: BaseModel, *, uses_triton: bool, chunk_rows: int = 0) -> LossHead:
    """The head of a model, as the adapters are computed.

    Args:
        chunk_rows: rows of logits held at a time; 0 is the form's own number.
    """
    chunk_rows = chunk_rows or head_chunk_rows(uses_triton)
    if not uses_triton:
        return Head.of(model, chunk_rows=chunk_rows)
    from .gpu_head import TritonHead

    return TritonHead.of(model, chunk_rows=chunk_rows)


def head_chunk_rows(uses_triton: bool) -> int:
    """Rows of logits that a form holds at a time."""
    return 1024 if uses_triton else 256


def head_bytes(
    vocab_size: int, dtype: torch.dtype, *, uses_triton: bool, is_capped: bool = False
) -> int:
    """Memory of a chunk of logits.

    The batched form keeps them in their own type and in float32 for the losses, and the tanh of
    capped ones; the Triton form has nothing beside the logits themselves.
    """
    elements = head_chunk_rows(uses_triton) * vocab_size
    return elements * (dtype.itemsize if uses_triton else (2 + is_capped) * 4)
