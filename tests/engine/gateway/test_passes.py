"""Passes: the SDK's bytes become datums, outputs become its bytes, and the rest is refused by name."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sdk_protobuf import message_class

from weft.client.batch import build_parts
from weft.client.csr import Csr
from weft.client.errors import BadRequest
from weft.client.messages import ModelCard
from weft.client.tensor_data import TensorData
from weft.client.types import Datum, ForwardBackwardOutput, ModelInput
from weft.engine.gateway.errors import Unserved
from weft.engine.gateway.passes import peek_pass, read_pass, write_pass

CARD = ModelCard(name="tiny", vocab_size=1000, max_context=64, max_rank=8)
FLOAT32, INT64 = 1, 2


def request(loss_fn: str = "cross_entropy") -> Any:
    """A request of the SDK, without data."""
    return message_class("ForwardBackwardRequest")(model_id="m:train:0", seq_id=7, loss_fn=loss_fn)


def add_datum(message: Any, tokens: list[int], **inputs: NDArray[Any]) -> Any:
    datum = message.data.add()
    datum.model_input.add().encoded_text.tokens = np.array(tokens, np.int32).tobytes()
    for name, values in inputs.items():
        tensor = datum.loss_fn_inputs[name]
        tensor.dense = values.tobytes()
        tensor.dtype = INT64 if values.dtype == np.int64 else FLOAT32
        tensor.shape.extend(values.shape)
    return datum


def read(message: Any) -> list[Datum]:
    return read_pass(message.SerializeToString()).data


def test_a_pass_is_read_as_it_was_meant() -> None:
    message = request("ppo")
    targets, floats = np.array([5, 6, 7]), np.array([-1.5, 0.0, 2.0], np.float32)
    add_datum(message, [4, 5, 6], target_tokens=targets, logprobs=floats, advantages=-floats)
    add_datum(message, [9], target_tokens=targets[:1], logprobs=floats[:1])
    message.forward_only = True
    asked = read_pass(message.SerializeToString())
    assert (asked.model_id, asked.seq_id, asked.loss_fn) == ("m:train:0", 7, "ppo")
    assert asked.forward_only
    assert asked.data == [
        Datum(
            ModelInput.from_ints([4, 5, 6]),
            {
                "target_tokens": TensorData(targets),
                "logprobs": TensorData(floats),
                "advantages": TensorData(-floats),
            },
        ),
        Datum(
            ModelInput.from_ints([9]),
            {"target_tokens": TensorData(targets[:1]), "logprobs": TensorData(floats[:1])},
        ),
    ]


def test_arrays_are_views_of_the_body() -> None:
    message = request()
    add_datum(message, [1, 2], weights=np.ones(2, np.float32))
    body = message.SerializeToString()
    (datum,) = read_pass(body).data
    whole = np.frombuffer(body, np.uint8)
    assert np.shares_memory(whole, datum.model_input.to_numpy())
    assert np.shares_memory(whole, datum.loss_fn_inputs["weights"].array)


def test_chunks_of_text_are_one_input() -> None:
    message = request()
    datum = add_datum(message, [1, 2])
    datum.model_input.add().encoded_text.tokens = np.array([3], np.int32).tobytes()
    datum.model_input.add().encoded_text.SetInParent()
    assert read(message)[0].model_input.to_ints() == [1, 2, 3]


def test_matrices_of_targets_are_read_dense_and_sparse() -> None:
    message = request()
    datum = add_datum(message, [1, 2, 3], weights=np.ones((3, 2), np.float32))
    tensor = datum.loss_fn_inputs["target_tokens"]
    tensor.dtype = INT64
    tensor.shape.extend((3, 2))
    tensor.sparse_csr.values = np.array([8, 9]).tobytes()
    tensor.sparse_csr.crow_indices = np.array([0, 1, 1, 2]).tobytes()
    tensor.sparse_csr.col_indices = np.array([1, 0]).tobytes()
    inputs = read(message)[0].loss_fn_inputs
    assert inputs["weights"].shape == [3, 2]
    assert inputs["target_tokens"].tolist() == [[0, 8], [0, 0], [9, 0]]


def test_a_pass_can_be_laid_out_though_its_arrays_lie_unaligned() -> None:
    for padding in range(1, 5):
        message = request()
        message.model_id = "m" * padding
        add_datum(message, [1, 2], target_tokens=np.array([2, 3]), weights=np.ones(2, np.float32))
        (part,) = build_parts(read(message), "cross_entropy", CARD)
        assert part.num_tokens == 2


def test_no_target_is_narrowed_silently() -> None:
    message = request()
    add_datum(message, [1], target_tokens=np.array([1 + 2**32]))
    with pytest.raises(BadRequest, match="target_tokens 4294967297 is not in the vocabulary"):
        build_parts(read(message), "cross_entropy", CARD)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("weights", {"dtype": 0}, "weights has dtype 0"),
        ("weights", {"dtype": 3}, "weights has dtype 3"),
        ("weights", {"dtype": 4}, "weights has dtype 4"),
        ("weights", {"dense": b"\0" * 7}, "weights has 7 bytes"),
        ("weights", {"shape": [3]}, r"2 values, not those of shape \[3\]"),
        ("weights", {"shape": [-1]}, r"weights has shape \[-1\]"),
        ("weights", {"shape": [2, -1, -1]}, r"weights has shape \[2, -1, -1\]"),
        ("weights", {"shape": [1] * 5}, "more than 4"),
        ("weights", {"sparse": (b"\0" * 7, b"", b"")}, "weights: values has 7 bytes"),
        ("weights", {"sparse": (b"\0" * 4, b"\0" * 8, b"\0" * 8)}, "weights: .*row pointers"),
        ("weights", {"sparse": (b"", b"\0" * 24, b"\0" * 8)}, "weights: sparse_crow_indices"),
    ],
)
def test_an_array_that_contradicts_itself_is_refused(
    name: str, change: dict[str, Any], words: str
) -> None:
    message = request()
    add_datum(message, [1], target_tokens=np.array([1]))
    tensor = add_datum(message, [1, 2], weights=np.ones(2, np.float32)).loss_fn_inputs[name]
    shape = change.pop("shape", [2, 2] if "sparse" in change else [2])
    del tensor.shape[:]
    tensor.shape.extend(shape)
    if "sparse" in change:
        csr = tensor.sparse_csr
        csr.values, csr.crow_indices, csr.col_indices = change.pop("sparse")
    for key, value in change.items():
        setattr(tensor, key, value)
    with pytest.raises(BadRequest, match=words) as caught:
        read(message)
    assert "datum 1" in str(caught.value) or caught.value.code == "too_large"


def unserved(what: str) -> Any:
    message = request()
    datum = add_datum(message, [1])
    match what:
        case "custom" | "stable_reinforce":
            message.loss_fn = what
        case "image":
            datum.model_input.add().image.data = b"x"
        case "dmel":
            datum.model_input.add().dmel.dmel = b"x"
        case "no kind":
            datum.model_input.add()
        case "loss_id":
            message.loss_fn_config_v2["loss_id"].text = "x"
        case name:
            raise AssertionError(name)
    return message


@pytest.mark.parametrize(
    "what",
    [
        "custom",
        "stable_reinforce",
        "image",
        "dmel",
        "no kind",
        "loss_id",
    ],
)
def test_what_is_not_served_is_refused_by_name(what: str) -> None:
    body = unserved(what).SerializeToString()
    with pytest.raises(Unserved, match=what):
        read_pass(body)
    assert peek_pass(body) == ("m:train:0", 7)


def spanned(input_lengths: list[int], target_lengths: list[int], offset: int = 0) -> bytes:
    message = request()
    datum = add_datum(message, [1, 2, 3], target_tokens=np.array([2, 3, 4]))
    for length in input_lengths:
        datum.model_input_spans.add().sampled_tokens.length = length
    for length in target_lengths:
        span = datum.loss_fn_input_spans.add().prompt_tokens
        span.length, span.offset = length, offset
    return bytes(message.SerializeToString())


def test_provenance_that_covers_a_datum_is_taken() -> None:
    assert len(read_pass(spanned([1, 2], [3], offset=7)).data) == 1


@pytest.mark.parametrize(
    ("inputs", "targets", "offset", "named"),
    [
        pytest.param([1, 1], [3], 0, "model_input_spans", id="short"),
        pytest.param([3], [3, 1], 0, "loss_fn_input_spans", id="long"),
        pytest.param([3], [], 0, "loss_fn_input_spans", id="one-of-two"),
        pytest.param([3], [3], -1, "loss_fn_input_spans", id="offset"),
        pytest.param([4, -1], [3], 0, "model_input_spans", id="negative"),
    ],
)
def test_other_provenance_is_refused(
    inputs: list[int], targets: list[int], offset: int, named: str
) -> None:
    with pytest.raises(BadRequest, match=named):
        read_pass(spanned(inputs, targets, offset))


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ({"beta": 0.5}, {}, {"beta": 0.5}),
        ({}, {"beta": 0.5}, {"beta": 0.5}),
        ({"beta": 0.5}, {"beta": 0.5}, {"beta": 0.5}),
        ({}, {}, {}),
    ],
)
def test_options_of_a_loss_may_come_in_either_form(
    old: dict[str, float], new: dict[str, float], found: dict[str, float]
) -> None:
    message = request("dro")
    for key, value in old.items():
        message.loss_fn_config[key] = value
    for key, value in new.items():
        message.loss_fn_config_v2[key].number = value
    assert read_pass(message.SerializeToString()).loss_fn_config == found


@pytest.mark.parametrize("old", [{"beta": 0.25}, {"gamma": 0.5}])
def test_options_that_come_twice_must_agree(old: dict[str, float]) -> None:
    message = request("dro")
    message.loss_fn_config_v2["beta"].number = 0.5
    message.loss_fn_config.update(old)
    with pytest.raises(BadRequest, match=next(iter(old))):
        read_pass(message.SerializeToString())


@pytest.mark.parametrize("seq_id", [0, -1])
def test_a_pass_has_a_number(seq_id: int) -> None:
    message = request()
    message.seq_id = seq_id
    with pytest.raises(BadRequest, match=f"seq_id is {seq_id}"):
        read_pass(message.SerializeToString())


def test_few_bytes_cannot_ask_for_an_answer_of_very_many() -> None:
    message = request()
    for _ in range(33):
        tensor = add_datum(message, [1]).loss_fn_inputs["target_tokens"]
        tensor.dtype = INT64
        tensor.shape.extend((1, 1 << 20))
        tensor.sparse_csr.crow_indices = np.zeros(2, np.int64).tobytes()
    with pytest.raises(BadRequest, match="sparse target_tokens of 34603008 places") as caught:
        read(message)
    assert caught.value.code == "too_large"


@pytest.mark.parametrize(
    ("cut", "found"), [(20, ("m:train:0", 7)), (13, ("m:train:0", 7)), (12, None), (3, None)]
)
def test_the_number_of_a_damaged_pass_can_be_read(cut: int, found: tuple[str, int] | None) -> None:
    message = request()
    add_datum(message, [1, 2, 3])
    assert peek_pass(message.SerializeToString()[:cut]) == found


# --- results --------------------------------------------------------------------------------------


def as_the_sdk_reads(body: bytes) -> list[NDArray[Any]]:
    """The arrays of the datums of a result, by the rules of the SDK's converter."""
    output = message_class("ForwardBackwardOutput").FromString(body)
    found: list[NDArray[Any]] = []
    for record in output.loss_fn_outputs:
        (batch,) = record.fields.values()
        assert batch.dtype == FLOAT32
        values = np.frombuffer(batch.data, np.float32)
        bounds = np.frombuffer(batch.offsets, np.int64) // 4
        assert len(bounds) == record.num_datums + 1
        for start, end in pairwise(bounds):
            found.append(values[start:end].reshape(-1, *batch.trailing_shape))
    return found


def output(*logprobs: TensorData, **metrics: float) -> ForwardBackwardOutput:
    return ForwardBackwardOutput(
        loss_fn_outputs=[{"logprobs": tensor} for tensor in logprobs], metrics=metrics
    )


def test_outputs_of_any_shapes_come_back_in_order() -> None:
    rng = np.random.default_rng(0)
    shapes = [(3,), (1,), (2, 4), (5, 4), (1, 2), (4,)]
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    found = as_the_sdk_reads(write_pass(output(*map(TensorData, arrays))))
    assert [array.shape for array in found] == shapes
    for array, expected in zip(found, arrays, strict=True):
        np.testing.assert_array_equal(array, expected)


def test_datums_of_one_layout_share_a_record() -> None:
    body = write_pass(output(*(TensorData(np.ones(n, np.float32)) for n in range(1, 5))))
    (record,) = message_class("ForwardBackwardOutput").FromString(body).loss_fn_outputs
    assert record.num_datums == 4


def test_a_sparse_output_comes_back_dense_with_0_where_nothing_is_listed() -> None:
    csr = Csr(np.array([0, 1, 2]), np.array([2, 0]), 3)
    tensor = TensorData.listed(np.array([-1, -2], np.float32), csr)
    (found,) = as_the_sdk_reads(write_pass(output(tensor)))
    assert found.tolist() == [[0, 0, -1], [-2, 0, 0]]


def test_metrics_and_the_type_of_the_output_are_told() -> None:
    metrics = {"loss:sum": -1.25, "x:max": float("inf")}
    body = write_pass(output(TensorData(np.zeros(1, np.float32)), **metrics))
    found = message_class("ForwardBackwardOutput").FromString(body)
    assert (dict(found.metrics), found.loss_fn_output_type) == (metrics, "ArrayRecord")
