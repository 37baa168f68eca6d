"""From the datums of a call to the columnar parts that are sent.

A whole call is validated before any of it leaves. A column holds one value for each token of the
call, datum after datum; parts are slices of the columns at datum boundaries, each small enough that
a heartbeat or a sample is never stuck behind it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from .arrays import ITEM_BYTES, choose_encoding, choose_encodings, pack_arrays
from .errors import BadRequest
from .limits import limit
from .losses import Loss, LossInput, check_inputs, fill_config, find_loss
from .messages import Array, ModelCard
from .sequence_ratio import check_sequence_ratio
from .tensor_data import NumpyArray
from .types import Datum

_PART_BYTES = limit("part_bytes")
_MAX_PARTS = limit("parts")


@dataclass(frozen=True, slots=True)
class Part:
    """What one message of a call carries beside its header."""

    lengths: NDArray[np.int32]
    num_tokens: int
    arrays: list[Array]
    frames: list[memoryview]


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


def build_columns(
    data: Sequence[Datum], loss: Loss, card: ModelCard, config: Mapping[str, float]
) -> dict[str, NumpyArray]:
    """The validated columns of a call: "tokens", "lengths" and every input of the loss."""
    _check_datums(data, loss)
    inputs = [datum.model_input.to_numpy() for datum in data]
    lengths = np.fromiter(map(len, inputs), np.int32, len(inputs))
    _check_lengths(lengths, card)
    columns: dict[str, NumpyArray] = {
        "tokens": _join_tokens("token", inputs, lengths, card.vocab_size),
        "lengths": lengths,
    }
    for item in loss.inputs:
        default = config[item.default] if isinstance(item.default, str) else item.default
        values = _input_arrays(data, item, default, lengths)
        if item.dtype == "int32":
            columns[item.name] = _join_tokens(item.name, values, lengths, card.vocab_size)
        else:
            columns[item.name] = _join_floats(item.name, values, lengths)
    if loss.name == "gspo":
        check_sequence_ratio(columns, lengths)
    return columns


def pack_tokens(
    tokens: NumpyArray, card: ModelCard, room: int
) -> tuple[list[Array], list[memoryview]]:
    """Validate and lay out a prompt.

    Args:
        tokens: the prompt, at least one token.
        card: the model that will read it.
        room: tokens that are to be drawn after it.

    Raises:
        BadRequest: as above.
    """
    lengths = np.array([len(tokens)], np.int32)
    if len(tokens) == 0:
        raise BadRequest("the prompt is empty")
    if len(tokens) + room > card.max_context:
        raise BadRequest(
            f"prompt of {len(tokens)} tokens and max_tokens {room} exceed the context of "
            f"{card.max_context}",
            "too_large",
        )
    column = _join_tokens("prompt token", [tokens], lengths, card.vocab_size)
    if column.nbytes > _PART_BYTES:
        raise BadRequest(f"prompt of {column.nbytes} bytes, at most {_PART_BYTES}", "too_large")
    return pack_arrays({"tokens": column})


def cut_parts(columns: dict[str, NumpyArray]) -> list[Part]:
    """Cut columns into parts of at most `part_bytes`; a datum is never split."""
    lengths = columns["lengths"]
    ends = np.cumsum(lengths, dtype=np.int64)
    costs, encodings = _datum_bytes(columns, ends)
    largest = int(costs.argmax())
    if costs[largest] > _PART_BYTES:
        raise BadRequest(
            f"datum {largest} of {lengths[largest]} tokens takes {costs[largest]} bytes, "
            f"at most {_PART_BYTES}",
            "too_large",
        )
    totals = np.cumsum(costs)
    bounds = [0]
    while bounds[-1] < len(lengths):
        sent = int(totals[bounds[-1] - 1]) if bounds[-1] else 0
        bounds.append(int(np.searchsorted(totals, sent + _PART_BYTES, side="right")))
    if len(bounds) - 1 > _MAX_PARTS:
        raise BadRequest(
            f"a call of {int(totals[-1])} bytes takes {len(bounds) - 1} parts, at most {_MAX_PARTS}",
            "too_large",
        )
    parts: list[Part] = []
    for first, last in pairwise(bounds):
        start, stop = int(ends[first - 1]) if first else 0, int(ends[last - 1])
        chunk = {
            name: column[first:last] if name == "lengths" else column[start:stop]
            for name, column in columns.items()
        }
        is_whole = len(bounds) == 2
        chosen = encodings if is_whole else choose_encodings(chunk, encodings)
        arrays, frames = pack_arrays(chunk, chosen)
        parts.append(Part(lengths[first:last], stop - start, arrays, frames))
    return parts


def _check_datums(data: Sequence[Datum], loss: Loss) -> None:
    if not len(data):
        raise BadRequest("the call has no datum")
    seen: set[frozenset[str]] = set()
    for index, datum in enumerate(data):
        if not isinstance(datum, Datum):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise BadRequest(f"datum {index} is a {type(datum).__name__}, not a Datum")
        names = frozenset(datum.loss_fn_inputs)
        if names not in seen:
            try:
                check_inputs(loss, names)
            except BadRequest as error:
                raise BadRequest(f"datum {index}: {error}") from None
            seen.add(names)


def _check_lengths(lengths: NDArray[np.int32], card: ModelCard) -> None:
    shortest, longest = int(lengths.argmin()), int(lengths.argmax())
    if lengths[shortest] < 1:
        raise BadRequest(f"datum {shortest} is empty")
    if lengths[longest] > card.max_context:
        raise BadRequest(
            f"datum {longest} has {lengths[longest]} tokens, the context of {card.name} is "
            f"{card.max_context}",
            "too_large",
        )


def _input_arrays(
    data: Sequence[Datum], item: LossInput, default: float | None, lengths: NDArray[np.int32]
) -> list[NumpyArray]:
    name = item.name
    found: list[NumpyArray] = []
    expected: list[int] = lengths.tolist()
    for index, (datum, length) in enumerate(zip(data, expected, strict=True)):
        tensor = datum.loss_fn_inputs.get(name)
        if tensor is None:
            found.append(np.full(length, default, np.float32))
            continue
        values = tensor.array
        if values.shape != (length,):
            raise BadRequest(
                f"datum {index}: {name} has shape {list(values.shape)}, model_input has "
                f"{length} tokens"
            )
        found.append(values)
    if item.dtype == "int32":
        for index, values in enumerate(found):
            if values.dtype.kind == "f":
                raise BadRequest(f"datum {index}: {name} holds floats, not token ids")
    return found


def _join_tokens(
    what: str, arrays: list[NumpyArray], lengths: NDArray[np.int32], vocab_size: int
) -> NDArray[np.int32]:
    is_narrow = all(values.dtype == np.int32 for values in arrays)
    joined: NumpyArray = np.concatenate(arrays, dtype=np.int32 if is_narrow else np.int64)
    # Negative ids are huge when read as unsigned.
    unsigned: NumpyArray = joined.view(np.uint32 if is_narrow else np.uint64)
    if int(unsigned.max()) >= vocab_size:
        index = int(np.argmax(unsigned >= vocab_size))
        raise BadRequest(
            f"{_place(index, lengths)}: {what} {int(joined[index])} is not in the vocabulary of "
            f"{vocab_size}"
        )
    return joined.astype(np.int32, copy=False)


def _join_floats(
    name: str, arrays: list[NumpyArray], lengths: NDArray[np.int32]
) -> NDArray[np.float32]:
    joined = np.concatenate(arrays, dtype=np.float32, casting="unsafe")
    with np.errstate(over="ignore", invalid="ignore"):
        is_surely_finite = isfinite(joined.sum())  # a third of the time of isfinite().all()
    if not is_surely_finite and not (is_finite := np.isfinite(joined)).all():
        index = int(np.argmin(is_finite))
        raise BadRequest(
            f"{_place(index, lengths)}: {name} is {float(joined[index])}, not finite", "non_finite"
        )
    return joined


def _place(index: int, lengths: NDArray[np.int32]) -> str:
    ends = np.cumsum(lengths, dtype=np.int64)
    datum = int(np.searchsorted(ends, index, side="right"))
    return f"datum {datum}, position {index - int(ends[datum]) + int(lengths[datum])}"


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
