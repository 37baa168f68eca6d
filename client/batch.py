"""From the datums of a call to the columnar parts that are sent.

Parts are slices of the call's columns at datum boundaries, each small enough that a heartbeat or a
sample is never stuck behind it. Only a datum whose many targets would not fit into one part has
further ones, which hold nothing but targets.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from .arrays import ITEM_BYTES, choose_encoding, choose_encodings, pack_arrays
from .columns import Columns, build_columns, join_tokens
from .errors import BadRequest
from .limits import limit
from .losses import fill_config, find_loss
from .messages import Array, ModelCard
from .prompt_targets import PromptTargets
from .soft_targets import Layout
from .tensor_data import NumpyArray
from .types import Datum

_PART_BYTES = limit("part_bytes")
_MAX_PARTS = limit("parts")
_NO_DATUM = np.empty(0, np.int32)  # lengths of none


@dataclass(frozen=True, slots=True)
class Part:
    """What one message of a call carries beside its header."""

    lengths: NDArray[np.int32]
    num_tokens: int
    num_outputs: int  # log-probabilities in the answer
    arrays: list[Array]
    frames: list[memoryview]
    layouts: tuple[Layout, ...] = ()  # of its datums, where some targets of the call are a matrix


def build_parts(
    data: Sequence[Datum],
    loss_fn: str,
    card: ModelCard,
    config: Mapping[str, float] | None = None,
) -> list[Part]:
    """Validate a call's datums and lay them out.

    Args:
        data: at least one datum. Its arrays are copied.
        loss_fn: a name of `losses.LOSSES`.
        card: the model that will read them.
        config: the loss function's options; None takes the defaults.

    Raises:
        BadRequest: no datum, an empty one, one over the context or over a part, lengths that
            differ, a token id that is not in the vocabulary, a value that is not finite, an
            unknown or missing loss input. The message names datum and position.
    """
    loss = find_loss(loss_fn)
    return cut_parts(build_columns(data, loss, card, fill_config(loss, config)))


def check_prompt(num_tokens: int, card: ModelCard, room: int) -> None:
    """Refuse a prompt of a length that cannot be.

    Args:
        num_tokens: of the prompt.
        card: the model that will read it.
        room: tokens that are to be drawn after it.

    Raises:
        BadRequest: it is empty, or over the context.
    """
    if num_tokens == 0:
        raise BadRequest("the prompt is empty")
    if num_tokens + room > card.max_context:
        raise BadRequest(
            f"prompt of {num_tokens} tokens and max_tokens {room} exceed the context of "
            f"{card.max_context}",
            "too_large",
        )


def pack_prompt(
    tokens: NumpyArray, card: ModelCard, targets: PromptTargets | None = None
) -> tuple[list[Array], list[memoryview]]:
    """Lay a prompt out.

    Args:
        tokens: the prompt.
        card: the model that will read it.
        targets: tokens that are to be scored in place of its own.

    Raises:
        BadRequest: a token id that is not in the vocabulary, or too much for one part.
    """
    column = join_tokens(
        "prompt token", [tokens], card.vocab_size, lambda index: f"position {index}"
    )
    named: dict[str, NumpyArray] = {"tokens": column}
    encodings: dict[str, str] = {}
    if targets is not None:
        named |= {"target_counts": targets.counts, "target_tokens": targets.tokens}
        for name in ("target_counts", "target_tokens"):
            encodings[name], _ = choose_encoding(named[name], _NO_DATUM, None)
    arrays, frames = pack_arrays(named, encodings)
    num_bytes = sum(frame.nbytes for frame in frames)
    if num_bytes > _PART_BYTES:
        what = "prompt" if targets is None else "prompt and target_prompt_logprobs"
        raise BadRequest(f"{what} of {num_bytes} bytes, at most {_PART_BYTES}", "too_large")
    return arrays, frames


def cut_parts(columns: Columns) -> list[Part]:
    """Cut columns into parts of at most `part_bytes`."""
    named = columns.named
    has_counts = "target_counts" in named
    targets = {name: named[name] for name in ("target_tokens", "weights")} if has_counts else {}
    tokens = {name: column for name, column in named.items() if name not in targets}
    lengths = tokens["lengths"]
    ends = np.cumsum(lengths, dtype=np.int64)
    costs, encodings = _datum_bytes(tokens, ends)
    largest = int(costs.argmax())
    if costs[largest] > _PART_BYTES:
        raise BadRequest(
            f"datum {largest} of {lengths[largest]} tokens takes {costs[largest]} bytes, "
            f"at most {_PART_BYTES}",
            "too_large",
        )
    if has_counts:
        weighs_each = _is_constant(targets["weights"])
        encodings["weights"] = "constant" if weighs_each else "raw"
        target_bytes = ITEM_BYTES if weighs_each else 2 * ITEM_BYTES
        datum_bounds, target_bounds = _cut_targets(costs, _per_datum(tokens, ends), target_bytes)
    else:
        datum_bounds = target_bounds = _cut(costs)
    parts: list[Part] = []
    for bounds, target_bounds_ in zip(pairwise(datum_bounds), pairwise(target_bounds), strict=True):
        first, last = bounds
        start, stop = int(ends[first - 1]) if first else 0, int(ends[last - 1]) if last else 0
        chunk = {
            name: column[first:last] if name == "lengths" else column[start:stop]
            for name, column in tokens.items()
        }
        is_whole = len(datum_bounds) == 2
        chosen = encodings if is_whole else encodings | choose_encodings(chunk, encodings)
        chunk |= {name: column[slice(*target_bounds_)] for name, column in targets.items()}
        arrays, frames = pack_arrays(chunk, chosen)
        num_outputs = len(chunk["target_tokens"])
        layouts = columns.layouts[first:last]
        parts.append(Part(lengths[first:last], stop - start, num_outputs, arrays, frames, layouts))
    return parts


def _datum_bytes(
    columns: dict[str, NumpyArray], ends: NDArray[np.int64]
) -> tuple[NDArray[np.int64], dict[str, str]]:
    """An upper bound of what each datum adds to a part, whichever it falls into; the encodings."""
    lengths, tokens = columns["lengths"], columns["tokens"]
    costs = ITEM_BYTES * (1 + lengths.astype(np.int64))
    encodings: dict[str, str] = {}
    for name, column in columns.items():
        if name in ("tokens", "lengths"):
            continue
        encodings[name], changes = choose_encoding(column, lengths, tokens)
        if encodings[name] == "raw":
            costs += ITEM_BYTES * lengths.astype(np.int64)
        elif encodings[name] == "runs":
            inside = np.searchsorted(changes, ends - 1, side="right")
            costs += 2 * ITEM_BYTES * (1 + np.diff(inside, prepend=0))
        else:
            costs += ITEM_BYTES
    return costs, encodings


def _cut(costs: NDArray[np.int64]) -> list[int]:
    """Where parts begin in a row of pieces of these bytes, and the end of the last."""
    totals = np.cumsum(costs)
    bounds = [0]
    while bounds[-1] < len(costs):
        sent = int(totals[bounds[-1] - 1]) if bounds[-1] else 0
        bounds.append(int(np.searchsorted(totals, sent + _PART_BYTES, side="right")))
    if len(bounds) - 1 > _MAX_PARTS:
        raise BadRequest(
            f"a call of {int(totals[-1])} bytes takes {len(bounds) - 1} parts, at most {_MAX_PARTS}",
            "too_large",
        )
    return bounds


def _cut_targets(
    costs: NDArray[np.int64], num_targets: NDArray[np.int64], target_bytes: int
) -> tuple[list[int], list[int]]:
    """The bounds of parts in datums and in targets.

    Args:
        costs: bytes of each datum without its targets.
        num_targets: of each datum.
        target_bytes: of each target.
    """
    most = _PART_BYTES // target_bytes
    beside = np.minimum(num_targets, (_PART_BYTES - costs) // target_bytes)
    rest = num_targets - beside
    num_pieces = 1 + -(-rest // most)
    owners = np.repeat(np.arange(len(costs)), num_pieces)
    numbers = np.arange(len(owners)) - np.repeat(np.cumsum(num_pieces) - num_pieces, num_pieces)
    is_first = numbers == 0
    later = np.minimum(most, rest[owners] - (numbers - 1) * most)
    targets = np.where(is_first, beside[owners], later)
    bounds = _cut(np.where(is_first, costs[owners], 0) + target_bytes * targets)
    datum_ends = np.concatenate(([0], np.cumsum(is_first)))
    target_ends = np.concatenate(([0], np.cumsum(targets)))
    return datum_ends[bounds].tolist(), target_ends[bounds].tolist()


def _per_datum(columns: dict[str, NumpyArray], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """Targets of each datum."""
    totals = np.cumsum(columns["target_counts"], dtype=np.int64)[ends - 1]
    return np.diff(totals, prepend=0)


def _is_constant(values: NumpyArray) -> bool:
    bits = values.view(np.int32)
    return bool(len(bits) and (bits == bits[0]).all())
