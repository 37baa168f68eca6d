"""Turn what the broker dispatches into work for the compute thread, validated a second time.

The client checks a call before it sends it, but a worker trusts no peer: everything that a kernel
would index or divide by is checked here, so that a bad request fails alone, before any batch.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from ...client import wire
from ...client.arrays import ITEM_BYTES, unpack_arrays
from ...client.errors import BadRequest
from ...client.limits import limit
from ...client.losses import Loss, check_inputs, fill_config, find_loss
from ...client.messages import (
    Command,
    ForwardBackward,
    Header,
    Request,
    Sample,
)
from ...client.sequence_ratio import check_sequence_ratio
from ...client.worker_messages import Dispatch
from ..adapters.soft_targets import SoftTargets
from .columns import check_ids, read_ints
from .commands import CommandWork, Int32s, Int64s, ModelLimits, Origin, PassWork, Work
from .sample_work import read_sample
from .units import cut_units

Frame = bytes | memoryview

MAX_TARGETS = limit("soft_targets")
MAX_PART_OUTPUTS = limit("part_bytes") // ITEM_BYTES


class Assembler:
    """Collects the parts of calls; gives out work once a command is whole."""

    def __init__(self, limits: ModelLimits) -> None:
        self._limits = limits
        self._parts: dict[int, list[tuple[ForwardBackward, Sequence[Frame]]]] = {}

    def add(self, dispatch: Dispatch, header: Header, frames: Sequence[Frame]) -> Work | None:
        """Take one dispatched message; None while parts are missing.

        Raises:
            BadRequest: the request is refused, at its last part.
        """
        match header:
            case ForwardBackward():
                parts = self._parts.setdefault(dispatch.dispatch_id, [])
                parts.append((header, frames))
                if len(parts) < header.num_parts:
                    return None
                self.forget(dispatch.dispatch_id)
                return _join(_origin(dispatch, header), parts, self._limits)
            case Sample():
                _check_digest(header, frames)
                named = unpack_arrays(header.arrays, frames)
                return read_sample(_origin(dispatch, header), header, named, self._limits)
            case Command():
                _check_digest(header, frames)
                return CommandWork(_origin(dispatch, header), header)
            case Request():
                return CommandWork(_origin(dispatch, header), header)
        raise BadRequest(f"a worker does not serve {header.kind!r}")

    def forget(self, dispatch_id: int) -> None:
        """Drop the parts of a command that was refused or withdrawn."""
        self._parts.pop(dispatch_id, None)


def _origin(dispatch: Dispatch, header: Request) -> Origin:
    return Origin(
        dispatch.dispatch_id,
        dispatch.lease_epoch,
        dispatch.lane,
        header.request_id,
        dispatch.queued_s,
    )


def _check_digest(header: Command | Sample, frames: Sequence[Frame]) -> None:
    if wire.digest(header, frames) != header.digest:
        raise BadRequest("the digest does not match the payload", "malformed")


def _join(
    origin: Origin, parts: list[tuple[ForwardBackward, Sequence[Frame]]], limits: ModelLimits
) -> PassWork:
    parts.sort(key=lambda part: part[0].part)
    first = parts[0][0]
    if [header.part for header, _ in parts] != list(range(first.num_parts)):
        raise BadRequest("the parts of the call do not number 0 .. num_parts - 1", "malformed")
    columns: dict[str, list[np.ndarray]] = {}
    part_outputs = []
    for header, frames in parts:
        _check_digest(header, frames)
        named = unpack_arrays(header.arrays, frames)
        part_outputs.append(_check_part(header, named))
        if _nature(header) != _nature(first):
            raise BadRequest("the parts of the call differ in their loss", "malformed")
        for name, column in named.items():
            columns.setdefault(name, []).append(column)
    joined = {name: np.concatenate(arrays) for name, arrays in columns.items()}
    tokens, lengths = joined.pop("tokens"), joined.pop("lengths")
    loss = find_loss(first.loss_fn)
    config = fill_config(loss, first.loss_fn_config)
    counts = joined.pop("target_counts", None)
    _check_inputs(
        loss, joined, len(tokens) if counts is None else _num_targets(loss, counts, tokens)
    )
    targets = joined.pop("target_tokens")
    check_ids("tokens", tokens, limits.vocab_size)
    check_ids("target_tokens", targets, limits.vocab_size)
    longest = int(lengths.max())
    if longest > limits.max_datum_tokens:
        raise BadRequest(
            f"a datum has {longest} tokens, at most {limits.max_datum_tokens} fit", "too_large"
        )
    if loss.name == "gspo":
        check_sequence_ratio(joined, lengths)
    soft, output_starts = None, None
    if counts is not None:
        output_starts = np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
        soft = SoftTargets.build(counts, targets, joined["weights"])
        targets, joined["weights"] = (
            _of_single(column, counts, output_starts) for column in (targets, joined["weights"])
        )
    return PassWork(
        origin=origin,
        run_id=first.run_id,
        loss_fn=first.loss_fn,
        loss_fn_config=config,
        forward_only=first.forward_only,
        part_outputs=tuple(part_outputs),
        tokens=tokens,
        lengths=lengths,
        targets=targets,
        inputs=joined,
        units=cut_units(lengths.tolist(), limits.unit_tokens),
        soft=soft,
        output_starts=output_starts,
    )


def _check_part(header: ForwardBackward, named: Mapping[str, np.ndarray]) -> int:
    """The log-probabilities that the answer to a part will hold."""
    tokens, lengths = read_ints(named, "tokens"), read_ints(named, "lengths")
    if len(tokens) != header.num_tokens or len(lengths) != header.num_datums:
        raise BadRequest("declared counts differ from the arrays", "malformed")
    num_outputs = len(tokens)
    if "target_counts" in named:
        num_outputs = len(read_ints(named, "target_tokens"))
        if num_outputs > MAX_PART_OUTPUTS:
            raise BadRequest(
                f"a part of {num_outputs} targets, at most {MAX_PART_OUTPUTS}", "too_large"
            )
        if header.part > 0 and num_outputs and not len(lengths) and not len(tokens):
            return num_outputs  # further targets of a datum in an earlier part
    if len(lengths) == 0 or lengths.min() < 1 or int(lengths.sum()) != len(tokens):
        raise BadRequest("a datum is empty, or lengths do not add up to the tokens")
    return num_outputs


def _num_targets(loss: Loss, counts: np.ndarray, tokens: Int32s) -> int:
    """How many targets a call has whose tokens have any number of them."""
    if not loss.takes_soft_targets:
        raise BadRequest(f"{loss.name} takes no input 'target_counts'")
    if counts.dtype != np.int32 or counts.shape != tokens.shape:
        raise BadRequest("target_counts is not one int32 for each token", "malformed")
    if counts.min() < 0 or counts.max() > MAX_TARGETS:
        raise BadRequest(
            f"target_counts must lie in 0 .. {MAX_TARGETS}, not {counts.min()} .. {counts.max()}",
            "too_large",
        )
    return int(counts.sum(dtype=np.int64))


def _check_inputs(loss: Loss, named: Mapping[str, np.ndarray], length: int) -> None:
    """Refuse inputs that are not what the loss takes, each of this many elements."""
    check_inputs(loss, named)
    for item in loss.inputs:
        column = named.get(item.name)
        if column is None:
            raise BadRequest(f"{loss.name} lacks the input {item.name!r}")
        if column.dtype != np.dtype(item.dtype) or column.ndim != 1:
            raise BadRequest(f"{item.name} is not one-dimensional {item.dtype}")
        if len(column) != length:
            raise BadRequest(f"{item.name} has {len(column)} elements for {length} targets")
        if item.dtype == "float32" and not np.isfinite(column).all():
            raise BadRequest(f"{item.name} holds a value that is not finite", "non_finite")


def _of_single(column: np.ndarray, counts: Int32s, starts: Int64s) -> np.ndarray:
    """What tokens with exactly one target have of a column, and 0 for the others."""
    is_single = counts == 1
    found = np.zeros(len(counts), column.dtype)
    found[is_single] = column[starts[:-1][is_single]]
    return found


def _nature(header: ForwardBackward) -> tuple[str, dict[str, float], bool]:
    """What all parts of a call have in common."""
    return header.loss_fn, header.loss_fn_config, header.forward_only
