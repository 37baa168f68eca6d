"""From the parts of an answer to the values that callers get; every array here is their own."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .actions import AnswerPart
from .arrays import NumpyArray, unpack_arrays
from .batch import Part
from .errors import EngineFailed
from .tensor_data import TensorData
from .types import ForwardBackwardOutput

Metrics = dict[str, float]


def read_result(parts: Sequence[AnswerPart]) -> dict[str, Any]:
    """The plain data of an answer."""
    return parts[0].reply.result


def read_saved(parts: Sequence[AnswerPart]) -> dict[str, Any]:
    """Where a save has put its file, and how large that is."""
    result = read_result(parts)
    return {"path": result["path"], "size_bytes": result.get("size_bytes")}


def read_forward_backward(
    parts: Sequence[AnswerPart], sent: Sequence[Part]
) -> ForwardBackwardOutput:
    """The output of one call.

    Args:
        parts: of the answer, one for each part of the call.
        sent: the parts of the call.

    Raises:
        EngineFailed: the answer does not have the shape of the call.
    """
    if len(parts) != len(sent):
        raise EngineFailed(f"{len(sent)} parts were sent, {len(parts)} came back")
    found: list[NumpyArray] = []
    metrics: list[tuple[Metrics, int]] = []
    for part, call in zip(parts, sent, strict=True):
        logprobs = unpack_arrays(part.reply.arrays, part.frames).get("logprobs")
        if logprobs is None or logprobs.shape != (call.num_outputs,):
            raise EngineFailed(f"no logprobs of {call.num_outputs} targets in an answer")
        found.append(logprobs)
        if "metrics" in part.reply.result:
            metrics.append((part.reply.result["metrics"], len(call.lengths)))
    outputs = _split(np.concatenate(found), sent)
    return ForwardBackwardOutput(loss_fn_outputs=outputs, metrics=merge_metrics(metrics))


def _split(logprobs: NumpyArray, sent: Sequence[Part]) -> list[dict[str, TensorData]]:
    """Cut the log-probabilities of a call into those of its datums."""
    layouts = [layout for part in sent for layout in part.layouts]
    if layouts:
        sizes = [layout.num_sent for layout in layouts]
    else:
        sizes = np.concatenate([part.lengths for part in sent]).tolist()
    pieces = np.split(logprobs, np.cumsum(sizes)[:-1])
    if layouts:
        arranged = zip(layouts, pieces, strict=True)
        return [{"logprobs": layout.arrange(piece)} for layout, piece in arranged]
    return [{"logprobs": TensorData(piece)} for piece in pieces]


def merge_metrics(parts: Sequence[tuple[Metrics, int]]) -> Metrics:
    """Merge the metrics of the parts of one call.

    A metric's name ends in what merges it: `sum`, `min`, `max`, `mean` (weighted by the number of
    datums), `slack` (the largest minus that mean), `hash2` (sum of unsigned 64-bit numbers, which
    wraps), and `unique` or anything else, which keeps the first and adds the others as `name_1`,
    `name_2`.

    Args:
        parts: metrics and number of datums of each part.
    """
    if len(parts) == 1:
        return dict(parts[0][0])
    merged: Metrics = {}
    for key in dict.fromkeys(key for metrics, _ in parts for key in metrics):
        found = [(metrics[key], weight) for metrics, weight in parts if key in metrics]
        values = [value for value, _ in found]
        mean = sum(value * weight for value, weight in found) / sum(weight for _, weight in found)
        match key.rpartition(":")[2]:
            case "sum":
                merged[key] = sum(values)
            case "mean":
                merged[key] = mean
            case "min":
                merged[key] = min(values)
            case "max":
                merged[key] = max(values)
            case "slack":
                merged[key] = max(values) - mean
            case "hash2":
                merged[key] = sum(map(int, values)) % 2**64
            case _:
                merged[key] = values[0]
                merged |= {f"{key}_{index}": value for index, value in enumerate(values) if index}
    return merged
