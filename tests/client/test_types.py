"""The values of the SDK: names, defaults, and lists where it has lists."""

import dataclasses

import numpy as np
import pytest
import torch

from weft.client import (
    AdamParams,
    BadRequest,
    Datum,
    EncodedTextChunk,
    LoraConfig,
    ModelInput,
    SampledSequence,
    SamplingParams,
    TensorData,
)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (
            AdamParams(),
            {
                "learning_rate": 1e-4,
                "beta1": 0.9,
                "beta2": 0.95,
                "eps": 1e-12,
                "weight_decay": 0.0,
                "grad_clip_norm": 0.0,
            },
        ),
        (
            SamplingParams(),
            {
                "max_tokens": None,
                "seed": None,
                "stop": None,
                "temperature": 1.0,
                "top_k": -1,
                "top_p": 1.0,
            },
        ),
        (
            LoraConfig(),
            {
                "rank": 32,
                "seed": None,
                "train_unembed": True,
                "train_mlp": True,
                "train_attn": True,
                "alpha": 32.0,
            },
        ),
    ],
    ids=["adam", "sampling", "lora"],
)
def test_defaults_are_those_of_the_sdk(value: object, expected: dict[str, object]) -> None:
    assert dataclasses.asdict(value) == expected  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "tokens",
    [[1, 2, 3], (1, 2, 3), np.array([1, 2, 3]), torch.tensor([1, 2, 3])],
    ids=["list", "tuple", "numpy", "torch"],
)
def test_tokens_of_any_origin_are_the_same_input(tokens: list[int]) -> None:
    made = ModelInput.from_ints(tokens)
    assert made.to_ints() == [1, 2, 3]
    assert made.length == 3
    assert made == ModelInput([EncodedTextChunk([1]), EncodedTextChunk([2, 3])])


def test_chunks_are_appended_to_a_copy() -> None:
    first = ModelInput.empty().append_int(1)
    second = first.append(EncodedTextChunk([2, 3]))
    assert (first.to_ints(), second.to_ints(), second.length) == ([1], [1, 2, 3], 3)
    assert ModelInput.empty().to_ints() == []


@pytest.mark.parametrize("tokens", [[1.5], ["a"], [[1, 2]], np.ones((2, 2), np.int32)])
def test_tokens_that_are_no_row_of_integers_are_refused(tokens: list[int]) -> None:
    with pytest.raises(BadRequest):
        ModelInput.from_ints(tokens)


def test_another_kind_of_chunk_is_refused_by_name() -> None:
    with pytest.raises(BadRequest, match="chunk of type dict is not served"):
        ModelInput([{"type": "image"}])  # type: ignore[list-item]


def test_plain_lists_are_taken_for_known_inputs_alone() -> None:
    datum = Datum(ModelInput.from_ints([1]), {"target_tokens": [2], "weights": [1]})
    assert datum.loss_fn_inputs["weights"] == TensorData([1.0], "float32")
    with pytest.raises(BadRequest, match="'mask' is a plain list"):
        Datum(ModelInput.from_ints([1]), {"mask": [1]})


@pytest.mark.parametrize("targets", [[6, 7, 8], [6, 9, 8], [6, 7]], ids=["next", "other", "short"])
def test_targets_are_taken_as_given(targets: list[int]) -> None:
    datum = Datum(ModelInput.from_ints([5, 6, 7]), {"target_tokens": targets})
    assert datum.loss_fn_inputs["target_tokens"].tolist() == targets


def test_tokens_that_change_after_they_were_given_do_not_change_the_targets() -> None:
    tokens = [5, 6, 7]
    model_input = ModelInput.from_ints(tokens)
    tokens[1] = 50
    datum = Datum(model_input, {"target_tokens": [*tokens[1:], 8]})
    assert datum.loss_fn_inputs["target_tokens"].tolist() == [50, 7, 8]


def test_a_sequence_has_lists_and_arrays() -> None:
    sequence = SampledSequence(stop_reason="stop", tokens=[1, 2], logprobs=[-0.5, -1.0])
    assert sequence.tokens + [3] == [1, 2, 3]  # noqa: RUF005
    assert sequence.logprobs == [-0.5, -1.0]
    assert sequence.tokens_np.tolist() == [1, 2]
