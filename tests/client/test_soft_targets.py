"""Matrices of targets travel as ragged columns, and log-probabilities come back in their layout."""

from typing import Any

import numpy as np
import pytest
import torch
from fake_broker import CARD

from weft.client.actions import AnswerPart
from weft.client.answers import read_forward_backward
from weft.client.arrays import pack_arrays, unpack_arrays
from weft.client.batch import Part, build_parts
from weft.client.errors import BadRequest
from weft.client.limits import limit
from weft.client.messages import ModelCard, Reply
from weft.client.tensor_data import TensorData
from weft.client.types import Datum, ModelInput

WIDE = ModelCard(name="wide", vocab_size=1 << 20, max_context=1 << 20, max_rank=256)


def datum(targets: Any, weights: Any = None, length: int = 2) -> Datum:
    inputs = {"target_tokens": targets} | ({} if weights is None else {"weights": weights})
    return Datum(ModelInput.from_ints(list(range(1, length + 1))), inputs)


def sparse(dtype: str, values: list[Any], columns: list[int]) -> TensorData:
    """A matrix [2, 3] with the first value in row 0, the others in row 1."""
    return TensorData(values, dtype, [2, 3], [0, 1, len(values)], columns)


def columns(parts: list[Part]) -> dict[str, list[Any]]:
    decoded = [unpack_arrays(part.arrays, part.frames) for part in parts]
    return {name: np.concatenate([one[name] for one in decoded]).tolist() for name in decoded[0]}


def answer(parts: list[Part]) -> list[TensorData]:
    """What comes back when the log-probability of a target is minus its id."""
    replies: list[AnswerPart] = []
    for part in parts:
        tokens = unpack_arrays(part.arrays, part.frames)["target_tokens"]
        arrays, frames = pack_arrays({"logprobs": -tokens.astype(np.float32)})
        result: dict[str, Any] = {"metrics": {}} if not replies else {}
        replies.append(AnswerPart(Reply(request_id=1, result=result, arrays=arrays), tuple(frames)))
    return [one["logprobs"] for one in read_forward_backward(replies, parts).loss_fn_outputs]


def test_a_dense_matrix_is_a_column_of_targets_and_a_constant_count() -> None:
    parts = build_parts(
        [datum([[1, 2, 3], [4, 5, 6]], [[0.5, 0.25, 0], [1.0, 0, -2]])], "cross_entropy", CARD
    )
    assert columns(parts) == {
        "tokens": [1, 2],
        "lengths": [2],
        "target_counts": [3, 3],
        "target_tokens": [1, 2, 3, 4, 5, 6],
        "weights": [0.5, 0.25, 0, 1, 0, -2],
    }
    assert {one.name: one.encoding for one in parts[0].arrays}["target_counts"] == "constant"
    (logprobs,) = answer(parts)
    assert logprobs.tolist() == [[-1, -2, -3], [-4, -5, -6]]


def test_a_sparse_matrix_sends_what_it_lists_and_comes_back_so() -> None:
    targets = sparse("int64", [7, 8, 9], [2, 0, 1])
    parts = build_parts(
        [datum(targets, sparse("float32", [0.5, 0.25, 1.0], [2, 0, 1]))], "cross_entropy", CARD
    )
    assert columns(parts)["target_counts"] == [1, 2]
    assert columns(parts)["target_tokens"] == [7, 8, 9]
    assert columns(parts)["weights"] == [0.5, 0.25, 1.0]
    (logprobs,) = answer(parts)
    assert logprobs == sparse("float32", [-7, -8, -9], [2, 0, 1])


def test_a_place_that_only_the_weights_list_is_token_0() -> None:
    targets = sparse("int64", [7, 8], [2, 0])
    weights = sparse("float32", [0.5, 1.0, 2.0], [0, 0, 2])
    parts = build_parts([datum(targets, weights)], "cross_entropy", CARD)
    assert columns(parts)["target_counts"] == [2, 2]
    assert columns(parts)["target_tokens"] == [0, 7, 8, 0]
    assert columns(parts)["weights"] == [0.5, 0.0, 1.0, 2.0]
    assert answer(parts) == [sparse("float32", [-7, -8], [2, 0])]


def test_sparse_weights_of_dense_targets_are_0_elsewhere() -> None:
    weights = sparse("float32", [0.5, 1.0], [0, 2])
    parts = build_parts([datum([[1, 2, 3], [4, 5, 6]], weights)], "cross_entropy", CARD)
    assert columns(parts)["weights"] == [0.5, 0, 0, 0, 0, 1]
    assert answer(parts)[0].tolist() == [[-1, -2, -3], [-4, -5, -6]]


def test_every_listed_target_has_weight_1_without_weights() -> None:
    data = [datum(sparse("int64", [7, 8], [2, 0])), datum([[1, 2], [3, 4]])]
    parts = build_parts(data, "cross_entropy", CARD)
    assert columns(parts)["weights"] == [1.0] * 6
    assert {one.name: one.encoding for one in parts[0].arrays}["weights"] == "constant"


def test_lists_and_matrices_of_any_width_share_a_call() -> None:
    data = [datum([5, 6]), datum([[1, 2], [3, 4]]), datum([[7], [8]]), datum([9, 10], [0.5, 1])]
    parts = build_parts(data, "cross_entropy", CARD)
    assert columns(parts)["target_counts"] == [1, 1, 2, 2, 1, 1, 1, 1]
    assert {one.name: one.encoding for one in parts[0].arrays}["target_counts"] == "per_datum"
    found = [one.tolist() for one in answer(parts)]
    assert found == [[-5, -6], [[-1, -2], [-3, -4]], [[-7], [-8]], [-9, -10]]


def test_one_target_a_position_is_sent_as_a_list_is() -> None:
    tokens = list(range(2, 52))
    one = datum([[token] for token in tokens], [[1.0]] * 50, length=50)
    parts = build_parts([one, one], "cross_entropy", CARD)
    same = build_parts([datum(tokens, [1.0] * 50, length=50)] * 2, "cross_entropy", CARD)
    assert parts[0].arrays == same[0].arrays
    assert [bytes(frame) for frame in parts[0].frames] == [bytes(f) for f in same[0].frames]
    assert answer(parts)[1].shape == [50, 1]


def test_torch_matrices_are_kept_sparse_when_that_is_smaller() -> None:
    targets = torch.zeros(2, 9, dtype=torch.int64)
    targets[1, 3] = 4
    made = datum(targets, targets.float())
    assert made.loss_fn_inputs["target_tokens"].sparse_col_indices == [3]
    assert made.loss_fn_inputs["weights"].sparse_col_indices == [3]
    assert datum(targets.numpy()).loss_fn_inputs["target_tokens"].sparse_col_indices is None


def test_a_position_may_have_no_target() -> None:
    empty = TensorData([], "int64", [2, 3], [0, 0, 0], [])
    parts = build_parts([datum(empty), datum([5, 6])], "cross_entropy", CARD)
    assert columns(parts)["target_counts"] == [0, 0, 1, 1]
    assert [one.data for one in answer(parts)] == [[], [-5, -6]]
    assert columns(build_parts([datum(empty)], "cross_entropy", CARD))["target_tokens"] == []


def test_soft_targets_take_eight_bytes_each() -> None:
    generator = np.random.default_rng(0)
    shape = (400, 20)
    made = datum(generator.integers(0, 1000, shape), generator.random(shape), length=400)
    (part,) = build_parts([made], "cross_entropy", WIDE)
    assert sum(map(len, part.frames)) <= 8 * 400 * 20 + 4 * 400 + 4


@pytest.mark.parametrize("seed", range(3))
def test_targets_too_many_for_a_part_go_on_in_the_next(seed: int) -> None:
    generator = np.random.default_rng(seed)
    data, tokens = [], []
    for length, width in ((300, 1), (9000, 64), (2000, 100), (50, 3), (40_000, 4)):
        tokens.append(generator.integers(0, 1000, (length, width)))
        weights = generator.random((length, width)) if seed else None
        data.append(datum(tokens[-1], weights, length))
    parts = build_parts(data, "cross_entropy", WIDE)
    sizes = [sum(map(len, part.frames)) for part in parts]
    assert max(sizes) <= limit("part_bytes")
    assert len(sizes) <= sum(sizes) / limit("part_bytes") + len(data)
    assert sum(len(part.lengths) for part in parts) == len(data)
    assert [one.to_numpy().tolist() for one in answer(parts)] == [(-t).tolist() for t in tokens]


@pytest.mark.parametrize(
    ("made", "message", "code"),
    [
        pytest.param(
            datum([[1, 2], [3, 4]], [1.0, 1.0]),
            r"datum 1: weights has shape \[2\], target_tokens \[2, 2\]",
            "bad_request",
            id="flat weights",
        ),
        pytest.param(
            datum([1, 2], [[1.0, 1.0], [1.0, 1.0]]),
            r"datum 1: weights has shape \[2, 2\]",
            "bad_request",
            id="flat targets",
        ),
        pytest.param(
            datum([1, 2], sparse("float32", [1.0, 1.0], [0, 1])),
            r"datum 1: weights has shape \[2, 3\]",
            "bad_request",
            id="sparse weights of as many values as tokens",
        ),
        pytest.param(
            datum([[1, 2]]), r"target_tokens has shape \[1, 2\]", "bad_request", id="rows"
        ),
        pytest.param(
            datum([[[1]], [[2]]]), r"shape \[2, 1, 1\]", "bad_request", id="three dimensions"
        ),
        pytest.param(
            datum(np.zeros((2, 0), np.int64)), r"shape \[2, 0\]", "bad_request", id="no column"
        ),
        pytest.param(
            datum(np.zeros((2, 1025), np.int64)), "1025 targets a position", "too_large", id="wide"
        ),
        pytest.param(
            datum([[1, 2], [3, 100]]),
            "datum 1, position 1: target_tokens 100 is not in the vocabulary",
            "bad_request",
            id="vocabulary",
        ),
        pytest.param(datum([[1, 2], [3, -1]]), "target_tokens -1", "bad_request", id="negative"),
        pytest.param(
            datum(np.ones((2, 2), np.float32)), "holds floats", "bad_request", id="float targets"
        ),
        pytest.param(
            datum([[1, 2], [3, 4]], [[1.0, 1.0], [1.0, float("nan")]]),
            "datum 1, position 1: weights is nan",
            "non_finite",
            id="nan",
        ),
    ],
)
@pytest.mark.parametrize("is_among_matrices", [False, True])
def test_bad_targets_are_refused(
    made: Datum, message: str, code: str, is_among_matrices: bool
) -> None:
    other = datum([[1, 2], [3, 4]]) if is_among_matrices else datum([1, 2])
    with pytest.raises(BadRequest, match=message) as caught:
        build_parts([other, made], "cross_entropy", CARD)
    assert caught.value.code == code


def test_other_losses_have_one_target_a_position() -> None:
    inputs: Any = {
        "target_tokens": [[1, 2], [3, 4]],
        "logprobs": [-1.0] * 2,
        "advantages": [1.0] * 2,
    }
    made = Datum(ModelInput.from_ints([1, 2]), inputs)
    with pytest.raises(BadRequest, match=r"target_tokens has shape \[2, 2\]"):
        build_parts([made], "ppo", CARD)


def test_counts_are_no_input_of_a_datum() -> None:
    made = datum([[1, 2], [3, 4]])
    made.loss_fn_inputs["target_counts"] = TensorData([2, 2])
    with pytest.raises(BadRequest, match="takes no input 'target_counts'"):
        build_parts([made], "cross_entropy", CARD)
