"""Turn what the broker dispatches into work for the compute thread, validated a second time.

The client checks a call before it sends it, but a worker trusts no peer: everything that a kernel
would index or divide by is checked here, so that a bad request fails alone, before any batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...client import wire
from ...client.arrays import unpack_arrays
from ...client.errors import BadRequest
from ...client.losses import check_inputs, fill_config, find_loss
from ...client.messages import Command, Dispatch, ForwardBackward, Header, Request, Sample
from ...client.sequence_ratio import check_sequence_ratio
from .units import Unit, cut_units

Frame = bytes | memoryview
Int32s = npt.NDArray[np.int32]
Float32s = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where work came from and where its answer goes."""

    dispatch_id: int
    lease_epoch: int
    lane: str
    request_id: int


@dataclass(frozen=True, slots=True)
class PassWork:
    """One whole forward or forward_backward command, its parts joined."""

    origin: Origin
    run_id: str
    loss_fn: str
    loss_fn_config: Mapping[str, float]
    forward_only: bool
    part_tokens: tuple[int, ...]  # tokens of each part, for cutting the answer
    tokens: Int32s  # [T]
    lengths: Int32s  # [N], all > 0
    targets: Int32s  # [T]
    inputs: Mapping[str, Float32s]  # the loss function's other inputs, [T] each
    units: tuple[Unit, ...]


@dataclass(frozen=True, slots=True)
class CommandWork:
    """An ordered command other than a pass, or a request that needs the compute thread."""

    origin: Origin
    header: Request


@dataclass(frozen=True, slots=True)
class SampleWork:
    """One sample request with its prompt."""

    origin: Origin
    header: Sample
    tokens: Int32s  # [P]


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What the loaded model can take."""

    vocab_size: int
    max_context: int  # tokens
    unit_tokens: int
    max_datum_tokens: int  # what fits into the activation budget, at most the context


Work = PassWork | CommandWork | SampleWork


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
                tokens = _ints(unpack_arrays(header.arrays, frames), "tokens")
                _check_prompt(header, tokens, self._limits)
                return SampleWork(_origin(dispatch, header), header, tokens)
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
    return Origin(dispatch.dispatch_id, dispatch.lease_epoch, dispatch.lane, header.request_id)


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
    for header, frames in parts:
        _check_digest(header, frames)
        named = unpack_arrays(header.arrays, frames)
        tokens, lengths = _ints(named, "tokens"), _ints(named, "lengths")
        if len(tokens) != header.num_tokens or len(lengths) != header.num_datums:
            raise BadRequest("declared counts differ from the arrays", "malformed")
        if len(lengths) == 0 or lengths.min() < 1 or int(lengths.sum()) != len(tokens):
            raise BadRequest("a datum is empty, or lengths do not add up to the tokens")
        if _nature(header) != _nature(first):
            raise BadRequest("the parts of the call differ in their loss", "malformed")
        for name, column in named.items():
            columns.setdefault(name, []).append(column)
    joined = {name: np.concatenate(arrays) for name, arrays in columns.items()}
    tokens, lengths = joined.pop("tokens"), joined.pop("lengths")
    loss = find_loss(first.loss_fn)
    check_inputs(loss, joined)
    config = fill_config(loss, first.loss_fn_config)
    missing = [item.name for item in loss.inputs if item.name not in joined]
    if missing:
        raise BadRequest(f"{loss.name} lacks the input {missing[0]!r}")
    for item in loss.inputs:
        column = joined[item.name]
        if column.dtype != np.dtype(item.dtype) or column.ndim != 1:
            raise BadRequest(f"{item.name} is not one-dimensional {item.dtype}")
        if len(column) != len(tokens):
            raise BadRequest(f"{item.name} has {len(column)} elements for {len(tokens)} tokens")
    targets = joined.pop("target_tokens")
    _check_ids("tokens", tokens, limits.vocab_size)
    _check_ids("target_tokens", targets, limits.vocab_size)
    longest = int(lengths.max())
    if longest > limits.max_datum_tokens:
        raise BadRequest(
            f"a datum has {longest} tokens, at most {limits.max_datum_tokens} fit", "too_large"
        )
    for name, column in joined.items():
        if not np.isfinite(column).all():
            raise BadRequest(f"{name} holds a value that is not finite", "non_finite")
    if loss.name == "gspo":
        check_sequence_ratio(joined, lengths)
    return PassWork(
        origin=origin,
        run_id=first.run_id,
        loss_fn=first.loss_fn,
        loss_fn_config=config,
        forward_only=first.forward_only,
        part_tokens=tuple(header.num_tokens for header, _ in parts),
        tokens=tokens,
        lengths=lengths,
        targets=targets,
        inputs=joined,
        units=cut_units(lengths.tolist(), limits.unit_tokens),
    )


def _nature(header: ForwardBackward) -> tuple[str, dict[str, float], bool]:
    """What all parts of a call have in common."""
    return header.loss_fn, header.loss_fn_config, header.forward_only


def _ints(named: Mapping[str, np.ndarray], name: str) -> Int32s:
    column = named.get(name)
    if column is None or column.dtype != np.int32 or column.ndim != 1:
        raise BadRequest(f"the request has no int32 array {name!r} of one dimension", "malformed")
    return column


def _check_ids(name: str, ids: Int32s, vocab_size: int) -> None:
    if len(ids) and not (int(ids.min()) >= 0 and int(ids.max()) < vocab_size):
        raise BadRequest(f"{name} must lie in 0 .. {vocab_size - 1}")


def _check_prompt(header: Sample, tokens: Int32s, limits: ModelLimits) -> None:
    if len(tokens) != header.num_tokens:
        raise BadRequest("the declared token count differs from the array", "malformed")
    if len(tokens) == 0:
        raise BadRequest("the prompt is empty")
    _check_ids("tokens", tokens, limits.vocab_size)
    new = max(header.max_tokens, 1)
    if len(tokens) + new > limits.max_context:
        raise BadRequest(
            "prompt length plus max_tokens exceeds the model's context window: "
            f"{len(tokens)} + {new} > {limits.max_context}",
            "too_large",
        )
