"""The datums of a call, validated as a whole and joined to columns.

A column holds one value for each token of the call, datum after datum. Where some datum has several
targets a position, "target_tokens" and "weights" hold one value for each target instead, and
"target_counts" says how many each token has.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from .arguments import shown
from .errors import BadRequest
from .losses import Loss, LossInput, check_inputs
from .messages import ModelCard
from .sequence_ratio import check_sequence_ratio
from .soft_targets import Layout, Targets, is_soft, read_targets
from .tensor_data import NumpyArray
from .types import Datum

Place = Callable[[int], str]  # names the datum and position of an element of a column


@dataclass(frozen=True, slots=True)
class Columns:
    """A whole call."""

    named: dict[str, NumpyArray]  # "tokens", "lengths", and the inputs of the loss
    layouts: tuple[Layout, ...] = ()  # of each datum, where some targets came as a matrix


def build_columns(
    data: Sequence[Datum], loss: Loss, card: ModelCard, config: Mapping[str, float]
) -> Columns:
    """The validated columns of a call.

    Raises:
        BadRequest: as `batch.build_parts`.
    """
    _check_datums(data, loss)
    inputs = [datum.model_input.to_numpy() for datum in data]
    lengths = np.fromiter(map(len, inputs), np.int32, len(inputs))
    _check_lengths(lengths, card)
    place = _by_token(lengths)
    named: dict[str, NumpyArray] = {
        "tokens": join_tokens("token", inputs, card.vocab_size, place),
        "lengths": lengths,
    }
    if loss.takes_soft_targets and any(map(is_soft, data)):
        return _with_soft_targets(named, read_targets(data, lengths), card.vocab_size)
    for item in loss.inputs:
        default = config[item.default] if isinstance(item.default, str) else item.default
        values = _input_arrays(data, item, default, lengths)
        if item.dtype == "int32":
            named[item.name] = join_tokens(item.name, values, card.vocab_size, place)
        else:
            named[item.name] = _join_floats(item.name, values, place)
    if loss.name == "gspo":
        check_sequence_ratio(named, lengths)
    return Columns(named)


def join_tokens(
    what: str, arrays: Sequence[NumpyArray], vocab_size: int, place: Place
) -> NDArray[np.int32]:
    """Join token ids.

    Raises:
        BadRequest: one is not in the vocabulary.
    """
    is_narrow = all(values.dtype == np.int32 for values in arrays)
    joined: NumpyArray = np.concatenate(arrays, dtype=np.int32 if is_narrow else np.int64)
    # Negative ids are huge when read as unsigned.
    unsigned: NumpyArray = joined.view(np.uint32 if is_narrow else np.uint64)
    if len(joined) and int(unsigned.max()) >= vocab_size:
        index = int(np.argmax(unsigned >= vocab_size))
        raise BadRequest(
            f"{place(index)}: {what} {int(joined[index])} is not in the vocabulary of {vocab_size}"
        )
    return joined.astype(np.int32, copy=False)


def _with_soft_targets(
    named: dict[str, NumpyArray], targets: Sequence[Targets], vocab_size: int
) -> Columns:
    counts = np.concatenate([one.counts for one in targets])
    place = _by_target(named["lengths"], counts)
    tokens = join_tokens("target_tokens", [one.tokens for one in targets], vocab_size, place)
    weights = _join_floats("weights", [one.weights for one in targets], place)
    if (counts != 1).any():
        named["target_counts"] = counts
    named["target_tokens"], named["weights"] = tokens, weights
    return Columns(named, tuple(one.layout for one in targets))


def _check_datums(data: Sequence[Datum], loss: Loss) -> None:
    if not hasattr(data, "__len__"):
        raise BadRequest(f"data is {shown(data)}, not a list of datums")
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
        if values.shape != (length,) or tensor.csr is not None:
            raise BadRequest(
                f"datum {index}: {name} has shape {tensor.shape}, model_input has {length} tokens"
            )
        found.append(values)
    if item.dtype == "int32":
        for index, values in enumerate(found):
            if values.dtype.kind == "f":
                raise BadRequest(f"datum {index}: {name} holds floats, not token ids")
    return found


def _join_floats(name: str, arrays: Sequence[NumpyArray], place: Place) -> NDArray[np.float32]:
    with np.errstate(over="ignore", invalid="ignore"):
        joined = np.concatenate(arrays, dtype=np.float32, casting="unsafe")
        is_surely_finite = isfinite(joined.sum())  # a third of the time of isfinite().all()
    if not is_surely_finite and not (is_finite := np.isfinite(joined)).all():
        index = int(np.argmin(is_finite))
        raise BadRequest(
            f"{place(index)}: {name} is {float(joined[index])}, not finite", "non_finite"
        )
    return joined


def _by_token(lengths: NDArray[np.int32]) -> Place:
    def place(index: int) -> str:
        ends = np.cumsum(lengths, dtype=np.int64)
        datum = int(np.searchsorted(ends, index, side="right"))
        return f"datum {datum}, position {index - int(ends[datum]) + int(lengths[datum])}"

    return place


def _by_target(lengths: NDArray[np.int32], counts: NDArray[np.int32]) -> Place:
    def place(index: int) -> str:
        ends = np.cumsum(counts, dtype=np.int64)
        return _by_token(lengths)(int(np.searchsorted(ends, index, side="right")))

    return place
