"""Several weighted targets a position: from matrices [N, K], dense or sparse, to ragged columns.

On the wire `target_counts` says how many targets each position has; `target_tokens` and `weights`
hold those of all positions end to end. A place that a sparse matrix does not list is 0 in it, so a
position's targets are those that its target_tokens list, and token 0 wherever only its weights are
not 0. Without weights every listed target has weight 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .csr import Csr
from .errors import BadRequest
from .limits import limit
from .tensor_data import NumpyArray, TensorData
from .types import Datum

MAX_TARGETS = limit("soft_targets")


@dataclass(frozen=True, slots=True)
class Layout:
    """How the targets of a datum came, which is how its log-probabilities go back."""

    num_sent: int  # targets that were sent
    width: int  # K of a matrix [N, K], 0 of a list [N]
    csr: Csr | None = None  # of a sparse matrix
    is_listed: NDArray[np.bool_] | None = None  # which of those sent the sparse matrix lists

    def arrange(self, logprobs: NDArray[np.float32]) -> TensorData:
        """The log-probabilities of the targets sent, in the layout in which they came."""
        if self.csr is not None:
            listed = logprobs if self.is_listed is None else logprobs[self.is_listed]
            return TensorData.listed(listed, self.csr)
        return TensorData(logprobs.reshape(-1, self.width) if self.width else logprobs)


@dataclass(frozen=True, slots=True)
class Targets:
    """The targets of one datum, position after position."""

    counts: NDArray[np.int32]  # [N] of each position
    tokens: NumpyArray  # [sum of counts]
    weights: NumpyArray  # [sum of counts], floats
    layout: Layout


def is_soft(datum: Datum) -> bool:
    """Whether a datum's targets come as a matrix."""
    targets = datum.loss_fn_inputs["target_tokens"]
    return targets.csr is not None or targets.array.ndim == 2


def read_targets(data: Sequence[Datum], lengths: NDArray[np.int32]) -> list[Targets]:
    """The targets and weights of datums, of which some have a matrix of them.

    Raises:
        BadRequest: shapes that differ from each other or from the model input, more targets a
            position than `soft_targets`, or tokens that are no integers.
    """
    found: list[Targets] = []
    for index, (datum, length) in enumerate(zip(data, lengths.tolist(), strict=True)):
        try:
            found.append(_read(datum, length))
        except BadRequest as error:
            raise BadRequest(f"datum {index}: {error}", error.code) from None
    return found


def _read(datum: Datum, length: int) -> Targets:
    targets = datum.loss_fn_inputs["target_tokens"]
    weights = datum.loss_fn_inputs.get("weights")
    width = _width(targets, length)
    if targets.dtype != "int64":
        raise BadRequest("target_tokens holds floats, not token ids")
    if weights is not None and weights.shape != targets.shape:
        raise BadRequest(f"weights has shape {weights.shape}, target_tokens {targets.shape}")
    if targets.csr is None and (weights is None or weights.csr is None):
        return _read_dense(targets.array, None if weights is None else weights.array, width)
    return _read_sparse(targets, weights, width)


def _width(targets: TensorData, length: int) -> int:
    shape = targets.shape
    if shape == [length] and targets.csr is None:
        return 0
    if len(shape) != 2 or shape[0] != length or shape[1] < 1:
        raise BadRequest(f"target_tokens has shape {shape}, model_input has {length} tokens")
    if shape[1] > MAX_TARGETS:
        raise BadRequest(
            f"target_tokens has {shape[1]} targets a position, at most {MAX_TARGETS}", "too_large"
        )
    return shape[1]


def _read_dense(targets: NumpyArray, weights: NumpyArray | None, width: int) -> Targets:
    counts = np.full(len(targets), width or 1, np.int32)
    filled = np.ones(targets.size, np.float32) if weights is None else weights.reshape(-1)
    return Targets(counts, targets.reshape(-1), filled, Layout(targets.size, width))


def _read_sparse(targets: TensorData, weights: TensorData | None, width: int) -> Targets:
    tokens = targets.to_numpy()
    is_target = np.ones(tokens.shape, bool)
    if targets.csr is not None:
        is_target = targets.csr.spread(np.ones(len(targets.array), bool))
    filled: NDArray[Any] = is_target.astype(np.float32) if weights is None else weights.to_numpy()
    is_sent = is_target | (filled != 0)
    is_listed = None if targets.csr is None else is_target[is_sent]
    layout = Layout(int(np.count_nonzero(is_sent)), width, targets.csr, is_listed)
    counts = is_sent.sum(1, dtype=np.int32)
    return Targets(counts, tokens[is_sent], filled[is_sent], layout)
