"""Forward and backward passes: from the SDK's protobuf to datums, and from an output back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import prod

import numpy as np

from ...client.errors import BadRequest
from ...client.limits import limit
from ...client.tensor_data import NumpyArray, TensorData
from ...client.types import Datum, ForwardBackwardOutput, ModelInput
from .errors import Unserved
from .protobuf import Values, decode, encode, peek
from .schema import FORWARD_BACKWARD_OUTPUT, FORWARD_BACKWARD_REQUEST, PASS_PLACE
from .tensors import INDICES, TOKENS, dtype_of, read_tensor, to_bytes, view

_UNSERVED_LOSSES = ("custom", "stable_reinforce")
_MAX_OUTPUTS = limit("pass_outputs")


@dataclass(frozen=True, slots=True, kw_only=True)
class PassRequest:
    """One call of `forward` or `forward_backward`, or one of the pieces that the SDK cut it into."""

    model_id: str
    seq_id: int
    data: list[Datum]  # views of the body; integers as wide as they came, until they are checked
    loss_fn: str
    loss_fn_config: dict[str, float]
    forward_only: bool


def read_pass(body: bytes) -> PassRequest:
    """Read the body of a post to `forward_backward`.

    Raises:
        Malformed: it is no such message, or its arrays do not have the sizes that it says.
        BadRequest: it contradicts itself, or is over a limit.
        Unserved: it asks for what is not served; names it.
    """
    found = decode(body, FORWARD_BACKWARD_REQUEST)
    loss_fn = found.get("loss_fn", "")
    if loss_fn in _UNSERVED_LOSSES:
        raise Unserved(f"loss_fn {loss_fn!r} is not served", "loss_fn")
    seq_id = found.get("seq_id", 0)
    if seq_id < 1:
        raise BadRequest(f"seq_id is {seq_id}, not a number from 1")
    data = [_datum(index, fields) for index, fields in enumerate(found.get("data", ()))]
    _check_outputs(data)
    return PassRequest(
        model_id=found.get("model_id", ""),
        seq_id=seq_id,
        data=data,
        loss_fn=loss_fn,
        loss_fn_config=_config(found.get("loss_fn_config", {}), found.get("loss_fn_config_v2", {})),
        forward_only=found.get("forward_only", False),
    )


def peek_pass(body: bytes) -> tuple[str, int] | None:
    """The model and number of a pass that may be refused or damaged, as far as they can be read."""
    found = peek(body, PASS_PLACE)
    return (found["model_id"], found["seq_id"]) if len(found) == 2 else None


def write_pass(output: ForwardBackwardOutput) -> bytes:
    """The body of a pass's result.

    Datums in a row whose arrays have the same names, types and trailing dimensions share a record.
    The SDK knows dense arrays alone here: what a sparse matrix does not list comes as 0.
    """
    records: list[Values] = []
    arrays = [_outputs(datum) for datum in output.loss_fn_outputs]
    for _, group in groupby(arrays, _layout):
        datums = list(group)
        fields = {name: _batched([datum[name] for datum in datums]) for name in datums[0]}
        records.append(
            {
                "type_tag": output.loss_fn_output_type,
                "fields": fields,
                "num_datums": len(datums),
            }
        )
    return encode(
        FORWARD_BACKWARD_OUTPUT,
        {
            "loss_fn_output_type": output.loss_fn_output_type,
            "loss_fn_outputs": records,
            "metrics": output.metrics,
        },
    )


# --- reading --------------------------------------------------------------------------------------


def _config(numbers: Mapping[str, float], values: Mapping[str, Values]) -> dict[str, float]:
    """A loss function's options; the SDK writes its numbers twice, and newer servers read `values`."""
    found: dict[str, float] = {}
    for key, value in values.items():
        if "text" in value:
            raise Unserved(
                f"loss_fn_config {key!r} is a text, which is not served", "loss_fn_config"
            )
        if "number" not in value:
            raise BadRequest(f"loss_fn_config_v2 {key!r} has no value")
        found[key] = value["number"]
    if not values:
        return dict(numbers)
    for key, number in numbers.items():
        if repr(found.get(key)) != repr(number):
            raise BadRequest(
                f"loss_fn_config {key!r} is {number}, and {found.get(key)} in loss_fn_config_v2"
            )
    return found


def _datum(index: int, fields: Values) -> Datum:
    try:
        tensors = {
            name: read_tensor(name, tensor)
            for name, tensor in fields.get("loss_fn_inputs", {}).items()
        }
        datum = Datum(_model_input(fields.get("model_input", ())), tensors)
        _check_spans(datum, fields)
        return datum
    except BadRequest as error:
        raise type(error)(f"datum {index}: {error}", error.code) from None


def _model_input(chunks: Sequence[Values]) -> ModelInput:
    arrays: list[NumpyArray] = []
    for chunk in chunks:
        if "encoded_text" not in chunk:
            kind = next(iter(chunk), "no kind")
            raise Unserved(f"a chunk of {kind} is not served; encoded_text is", "chunks")
        arrays.append(view("tokens", chunk["encoded_text"].get("tokens", b""), TOKENS))
    if len(arrays) == 1:
        return ModelInput.from_ints(arrays[0])
    return ModelInput.from_ints(np.concatenate(arrays)) if arrays else ModelInput.empty()


def _check_spans(datum: Datum, fields: Values) -> None:
    """Refuse provenance that does not cover a datum; only `stable_reinforce` would read it.

    Programs tell it whatever their loss: spans cover the tokens, and the targets, in order.
    """
    targets = datum.loss_fn_inputs.get("target_tokens")
    rows = {
        "model_input_spans": datum.model_input.length,
        "loss_fn_input_spans": targets.shape[0] if targets is not None and targets.shape else 0,
    }
    if any(name in fields for name in rows):
        for name, expected in rows.items():
            spans: list[Values] = [next(iter(span.values()), {}) for span in fields.get(name, ())]
            lengths = [span.get("length", 0) for span in spans]
            lowest = min(
                (min(span.get("offset", 0), span.get("length", 0)) for span in spans), default=0
            )
            if lowest < 0 or sum(lengths) != expected:
                raise BadRequest(
                    f"{name} of lengths {lengths[:16]} do not cover {expected} positions"
                )


def _check_outputs(data: Sequence[Datum]) -> None:
    """Refuse sparse targets of few bytes whose dense answer would be of very many."""
    total = 0
    for datum in data:
        targets = datum.loss_fn_inputs.get("target_tokens")
        if targets is not None and targets.csr is not None:
            total += prod(targets.shape)
    if total > _MAX_OUTPUTS:
        raise BadRequest(
            f"sparse target_tokens of {total} places together, at most {_MAX_OUTPUTS}", "too_large"
        )


# --- writing --------------------------------------------------------------------------------------


def _outputs(datum: Mapping[str, TensorData]) -> dict[str, NumpyArray]:
    return {name: tensor.to_numpy() for name, tensor in datum.items()}


def _layout(datum: Mapping[str, NumpyArray]) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(name, array.dtype.str, array.shape[1:]) for name, array in datum.items()]


def _batched(arrays: Sequence[NumpyArray]) -> Values:
    """The arrays of some datums, end to end."""
    joined = np.concatenate(arrays)
    offsets = np.zeros(len(arrays) + 1, INDICES)
    np.cumsum([array.nbytes for array in arrays], out=offsets[1:])
    return {
        "data": to_bytes(joined),
        "offsets": to_bytes(offsets),
        "dtype": dtype_of(joined),
        "trailing_shape": joined.shape[1:],
    }
