"""Answers become results, and those that contradict the call are refused."""

from typing import Any

import numpy as np
import pytest

from weft.client.actions import AnswerPart
from weft.client.answers import merge_metrics, read_forward_backward
from weft.client.arrays import pack_arrays
from weft.client.batch import Part
from weft.client.errors import EngineFailed
from weft.client.messages import Reply


def part(result: dict[str, Any], **arrays: np.ndarray) -> AnswerPart:
    described, frames = pack_arrays(arrays)
    return AnswerPart(Reply(request_id=1, result=result, arrays=described), tuple(frames))


def floats(*values: float) -> np.ndarray:
    return np.asarray(values, np.float32)


def ints(*values: int) -> np.ndarray:
    return np.asarray(values, np.int32)


def sent(*lengths: int) -> Part:
    return Part(ints(*lengths), sum(lengths), sum(lengths), [], [])


@pytest.mark.parametrize(
    ("name", "merged"),
    [
        ("a:sum", {"a:sum": 6.0}),
        ("a:min", {"a:min": 2.0}),
        ("a:max", {"a:max": 4.0}),
        ("a:mean", {"a:mean": 2.5}),
        ("a:slack", {"a:slack": 1.5}),
        ("a:unique", {"a:unique": 2.0, "a:unique_1": 4.0}),
        ("a:other", {"a:other": 2.0, "a:other_1": 4.0}),
    ],
)
def test_metrics_of_parts_are_merged_by_their_name(name: str, merged: dict[str, float]) -> None:
    assert merge_metrics([({name: 2.0}, 3), ({name: 4.0}, 1)]) == merged


def test_hashes_wrap_at_64_bits() -> None:
    assert merge_metrics([({"a:hash2": 2**63}, 1), ({"a:hash2": 2**63 + 2}, 1)]) == {"a:hash2": 2}


def test_a_metric_of_one_part_alone_is_kept() -> None:
    assert merge_metrics([({"a:sum": 1.0, "b:mean": 5.0}, 1), ({"a:sum": 2.0}, 9)]) == {
        "a:sum": 3.0,
        "b:mean": 5.0,
    }


def test_metrics_may_all_come_with_the_first_part() -> None:
    parts = [
        part({"metrics": {"loss:sum": 3.0}}, logprobs=floats(-1)),
        part({}, logprobs=floats(-2)),
    ]
    output = read_forward_backward(parts, [sent(1), sent(1)])
    assert output.metrics == {"loss:sum": 3.0}
    assert [one["logprobs"].tolist() for one in output.loss_fn_outputs] == [[-1], [-2]]


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([], id="no part"),
        pytest.param([part({}, logprobs=floats(1, 2))], id="too few"),
        pytest.param([part({}, logprobs=floats(1, 2, 3, 4))], id="too many"),
        pytest.param([part({})], id="none"),
        pytest.param([part({}, logprobs=floats(1, 2, 3))] * 2, id="two parts"),
    ],
)
def test_an_output_of_another_shape_is_refused(parts: list[AnswerPart]) -> None:
    with pytest.raises(EngineFailed):
        read_forward_backward(parts, [sent(1, 2)])
