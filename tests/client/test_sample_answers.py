"""Answers become samples, and those that contradict the call are refused."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fake_broker import CARD

from weft.client.actions import AnswerPart
from weft.client.arrays import pack_arrays
from weft.client.errors import EngineFailed
from weft.client.messages import Reply
from weft.client.sample_answers import read_samples
from weft.client.sample_call import SampleCall, build_sample
from weft.client.types import ModelInput, SamplingParams

ONE = {"stop_reasons": ["length"]}


def call(num_samples: int = 1, **options: Any) -> SampleCall:
    return build_sample(
        ModelInput.from_ints([1, 2, 3]),
        num_samples,
        SamplingParams(max_tokens=2),
        card=CARD,
        sampler_id="s",
        request_id=7,
        **options,
    )


def part(result: dict[str, Any], **arrays: np.ndarray) -> AnswerPart:
    described, frames = pack_arrays(arrays)
    return AnswerPart(Reply(request_id=7, result=result, arrays=described), tuple(frames))


def floats(*values: Any) -> np.ndarray:
    return np.asarray(values, np.float32)


def ints(*values: Any) -> np.ndarray:
    return np.asarray(values, np.int32)


DRAWN = {"tokens": ints(1, 2), "lengths": ints(2), "logprobs": floats(-1, -2)}


def test_samples_in_several_parts_are_joined() -> None:
    first = part({"stop_reasons": ["stop", "length"]}, **DRAWN)
    second = part({}, tokens=ints(3), lengths=ints(1), logprobs=floats(-3))
    response = read_samples([first, second], call(num_samples=2))
    assert [(one.tokens, one.stop_reason, one.sequence_id) for one in response.sequences] == [
        ([1, 2], "stop", "7:0"),
        ([3], "length", "7:1"),
    ]


def test_the_likeliest_of_several_parts_are_dealt_to_their_sequences() -> None:
    first = part(
        {"stop_reasons": ["stop", "length"]},
        tokens=ints(1, 2, 3),
        lengths=ints(2, 1),
        logprobs=floats(-1, -2, -3),
        topk_sample_tokens=ints([5, 6], [7, 0]),
        topk_sample_logprobs=floats([-1, -2], [-3, -99999]),
    )
    second = part({}, topk_sample_tokens=ints([8, 9]), topk_sample_logprobs=floats([-4, -5]))
    response = read_samples([first, second], call(num_samples=2, topk_sample_logprobs=2))
    assert [one.topk_logprobs for one in response.sequences] == [
        [[(5, -1.0), (6, -2.0)], [(7, -3.0)]],
        [[(8, -4.0), (9, -5.0)]],
    ]


def test_prompt_tokens_that_were_not_scored_are_padding() -> None:
    asked = call(topk_prompt_logprobs=2, include_prompt_logprobs=True, prompt_logprobs_last_n=1)
    answer = part(
        ONE,
        **DRAWN,
        prompt_logprobs=floats(np.nan, np.nan, -4),
        topk_prompt_tokens=ints([5, 6]),
        topk_prompt_logprobs=floats([-1, -2]),
    )
    response = read_samples([answer], asked)
    top = response.topk_prompt_logprobs_np
    assert top is not None
    assert top.token_ids.tolist() == [[0, 0], [0, 0], [5, 6]]
    assert top.logprobs.tolist() == [[-99999.0] * 2, [-99999.0] * 2, [-1.0, -2.0]]
    assert response.prompt_logprobs == [None, None, -4.0]


@pytest.mark.parametrize(
    "changes",
    [
        {"lengths": ints(3)},
        {"lengths": ints(1, 1)},
        {"logprobs": floats(-1)},
    ],
    ids=["length", "sequences", "logprobs"],
)
def test_samples_that_contradict_themselves_are_refused(changes: dict[str, np.ndarray]) -> None:
    with pytest.raises(EngineFailed, match="stop reasons"):
        read_samples([part(ONE, **(DRAWN | changes))], call())


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"include_prompt_logprobs": True}, "prompt_logprobs of shape \\[3\\]"),
        ({"topk_prompt_logprobs": 4}, "topk_prompt_tokens of shape \\[2, 4\\]"),
        ({"topk_sample_logprobs": 4}, "topk_sample_tokens of shape \\[2, 4\\]"),
        ({"prompt_alt_tokens_k": 4}, "prompt_alt_tokens of shape \\[2, 4\\]"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_answer_without_what_was_asked_for_is_refused(
    options: dict[str, Any], name: str
) -> None:
    with pytest.raises(EngineFailed, match=f"no {name} in an answer"):
        read_samples([part(ONE, **DRAWN)], call(**options))


def test_an_answer_has_the_id_of_its_request_in_its_sequences() -> None:
    asked = call()
    other = replace(asked, header=replace(asked.header, request_id=8))
    assert read_samples([part(ONE, **DRAWN)], other).sequences[0].sequence_id == "8:0"
