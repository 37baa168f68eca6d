"""Columns of a message that a kernel will index by: looked at before any batch."""

from collections.abc import Mapping

import numpy as np

from ...client.errors import BadRequest
from .commands import Int32s


def read_ints(named: Mapping[str, np.ndarray], name: str) -> Int32s:
    """The column of this name; raises BadRequest unless it is one of int32."""
    column = named.get(name)
    if column is None or column.dtype != np.int32 or column.ndim != 1:
        raise BadRequest(f"the request has no int32 array {name!r} of one dimension", "malformed")
    return column


def check_ids(name: str, ids: Int32s, vocab_size: int) -> None:
    """Raise BadRequest unless all ids are in the vocabulary."""
    if len(ids) and not (int(ids.min()) >= 0 and int(ids.max()) < vocab_size):
        raise BadRequest(f"{name} must lie in 0 .. {vocab_size - 1}")
