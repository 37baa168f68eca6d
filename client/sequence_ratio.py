"""What gspo asks of its inputs beyond their shapes; both ends of the wire check it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import BadRequest


def check_sequence_ratio(columns: Mapping[str, NDArray[Any]], lengths: NDArray[np.int32]) -> None:
    """Refuse bounds that cross, and datums that have an advantage and no token in their ratio.

    Args:
        columns: the inputs of gspo for a whole call, one value a token, all finite.
        lengths: tokens of each datum, at least 1 each.

    Raises:
        BadRequest: naming the first such datum.
    """
    low, high = columns["clip_low_threshold"], columns["clip_high_threshold"]
    is_crossed = (low < 0) | (low > high)
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    if is_crossed.any():
        row = int(np.argmax(is_crossed))
        datum = int(np.searchsorted(starts, row, side="right")) - 1
        raise BadRequest(
            f"datum {datum}, position {row - int(starts[datum])}: clip_low_threshold "
            f"{float(low[row]):g} and clip_high_threshold {float(high[row]):g} are not "
            "0 <= low <= high"
        )
    has_advantage = np.logical_or.reduceat(columns["advantages"] != 0, starts)
    has_ratio = np.logical_or.reduceat(columns["sequence_ratio_mask"] != 0, starts)
    if (has_advantage & ~has_ratio).any():
        datum = int(np.argmax(has_advantage & ~has_ratio))
        raise BadRequest(
            f"datum {datum} has an advantage, and its sequence_ratio_mask is 0 everywhere"
        )
