"""Samples: the SDK's body becomes the native message, the native result its protobuf."""

import json
from typing import Any

import numpy as np
import pytest
from sdk_protobuf import message_class

from weft.client.csr import Csr
from weft.client.errors import BadRequest
from weft.client.messages import ModelCard
from weft.client.sample_call import build_sample
from weft.client.sample_results import (
    PromptAltTokens,
    SampledSequence,
    SampleResponse,
    TopkLogprobs,
)
from weft.client.tensor_data import TensorData
from weft.client.types import ModelInput, SamplingParams
from weft.engine.gateway import bodies
from weft.engine.gateway.errors import Unserved
from weft.engine.gateway.samples import build_call, write_samples

CARD = ModelCard(name="tiny", vocab_size=100, max_context=64, max_rank=8)
NUMBER = 2**61 + 2**32 + 5
BODY: dict[str, Any] = {
    "prompt": {"chunks": [{"type": "encoded_text", "tokens": [1, 2, 3]}]},
    "sampling_params": {"max_tokens": 4},
    "sampling_session_id": "s:sample:0",
    "seq_id": 0,
}


def read(**changes: Any) -> bodies.Sample:
    return bodies.decode(bodies.Sample, json.dumps({**BODY, **changes}).encode())


def test_every_option_reaches_the_native_message() -> None:
    body = read(
        num_samples=3,
        sampling_params={
            "max_tokens": 5,
            "seed": 9,
            "stop": ["a", "b"],
            "temperature": 0.5,
            "top_k": 7,
            "top_p": 0.25,
        },
        prompt_logprobs=True,
        topk_prompt_logprobs=2,
        topk_sample_logprobs=3,
        target_prompt_logprobs={"data": [4, 5, -1, 6], "dtype": "int64", "shape": [2, 2]},
        prompt_alt_tokens_k=6,
        prompt_logprobs_last_n=1,
    )
    expected = build_sample(
        ModelInput.from_ints([1, 2, 3]),
        3,
        SamplingParams(max_tokens=5, seed=9, stop=["a", "b"], temperature=0.5, top_k=7, top_p=0.25),
        card=CARD,
        sampler_id="s:sample:0",
        request_id=NUMBER,
        include_prompt_logprobs=True,
        topk_prompt_logprobs=2,
        topk_sample_logprobs=3,
        target_prompt_logprobs=TensorData([4, 5, -1, 6], shape=[2, 2]),
        prompt_alt_tokens_k=6,
        prompt_logprobs_last_n=1,
    )
    call = build_call(body, CARD, NUMBER)
    assert (call.header, call.frames) == (expected.header, expected.frames)


def test_sparse_targets_of_a_prompt_are_read() -> None:
    body = read(
        target_prompt_logprobs={
            "data": [4, 5],
            "dtype": "int64",
            "shape": [2, 9],
            "sparse_crow_indices": [0, 0, 2],
            "sparse_col_indices": [1, 8],
        }
    )
    targets = build_call(body, CARD, NUMBER).targets
    assert targets is not None
    assert targets.counts.tolist() == [0, 2]
    assert targets.tokens.tolist() == [4, 5]


@pytest.mark.parametrize("stop", [None, [], "a", [7]])
def test_stops_keep_their_meaning(stop: Any) -> None:
    header = build_call(read(sampling_params={"stop": stop}), CARD, NUMBER).header
    assert header.default_stop == (stop is None)
    assert header.stop_strings == (["a"] if stop == "a" else [])
    assert header.stop_tokens == ([7] if stop == [7] else [])


def test_a_repeat_without_a_seed_is_the_same_request() -> None:
    first, second = (build_call(read(), CARD, NUMBER).header for _ in range(2))
    assert first == second
    assert first.seed == 5


def test_chunks_of_text_are_one_prompt() -> None:
    chunks = [{"type": "encoded_text", "tokens": tokens} for tokens in ([1], [], [2, 3])]
    whole, cut = (
        build_call(body, CARD, NUMBER) for body in (read(), read(prompt={"chunks": chunks}))
    )
    assert (whole.header, whole.frames) == (cut.header, cut.frames)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt": {"chunks": []}}, "empty"),
        ({"prompt": {"chunks": [{"type": "encoded_text", "tokens": [100]}]}}, "token 100"),
        (
            {"prompt": {"chunks": [{"type": "encoded_text", "tokens": [2**40]}]}},
            "token 1099511627776",
        ),
        ({"num_samples": 0}, "num_samples is 0"),
        ({"sampling_params": {"max_tokens": 62}}, "62"),
        ({"sampling_params": {"stop": ["a", 1]}}, "stop must be"),
        ({"sampling_params": {"top_p": 2.0}}, "top_p is 2"),
        ({"topk_prompt_logprobs": -1}, "topk_prompt_logprobs is -1"),
        ({"prompt_alt_tokens_k": 10**6}, "prompt_alt_tokens_k is 1000000"),
        ({"prompt_logprobs_last_n": 1}, "prompt_logprobs"),
        (
            {"target_prompt_logprobs": {"data": [1.5], "dtype": "int64", "shape": [1, 1]}},
            "not an array|fractions",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_the_clients_words(
    changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(BadRequest, match=words):
        build_call(read(**changes), CARD, NUMBER)


def test_what_is_not_served_is_refused_by_name() -> None:
    with pytest.raises(Unserved, match="record_stability_info"):
        build_call(read(record_stability_info=True), CARD, NUMBER)


# --- results --------------------------------------------------------------------------------------


def written(response: SampleResponse) -> Any:
    return message_class("SampleResponse").FromString(write_samples(response))


def topk(length: int, k: int) -> TopkLogprobs:
    ids = np.arange(1, length * k + 1, dtype=np.int32).reshape(length, k)
    return TopkLogprobs(ids, -ids.astype(np.float32))


def floats(*values: float) -> bytes:
    return np.array(values, np.float32).tobytes()


def ints(*values: int) -> bytes:
    return np.array(values, np.int32).tobytes()


def test_sequences_are_told_with_what_ended_them() -> None:
    found = written(
        SampleResponse(
            sequences=[
                SampledSequence(stop_reason="stop", tokens=[1, 2], logprobs=[-0.5, -1.0]),
                SampledSequence(
                    stop_reason="length", tokens=np.array([3]), topk_logprobs=topk(1, 2)
                ),
            ]
        )
    )
    first, second = found.sequences
    assert (first.stop_reason, first.tokens, first.logprobs) == (0, ints(1, 2), floats(-0.5, -1))
    assert (second.stop_reason, second.tokens, second.logprobs) == (1, ints(3), b"")
    assert not first.HasField("topk_sampled_logprobs")
    top = second.topk_sampled_logprobs
    assert (top.length, top.k, top.token_ids, top.logprobs) == (1, 2, ints(1, 2), floats(-1, -2))


def test_what_was_not_asked_for_is_not_told() -> None:
    found = written(SampleResponse(sequences=[]))
    assert [field.name for field, _ in found.ListFields()] == []


def test_scores_of_the_prompt_are_told() -> None:
    csr = Csr(np.array([0, 1, 1]), np.array([3]), 5)
    found = written(
        SampleResponse(
            sequences=[],
            prompt_logprobs=np.array([np.nan, -1, -2], np.float32),
            topk_prompt_logprobs=topk(3, 2),
            target_prompt_logprobs=TensorData.listed(np.array([-4], np.float32), csr),
            prompt_alt_tokens=PromptAltTokens(
                tokens=TensorData(np.array([[1], [2]], np.int32)),
                logprobs=TensorData(np.array([[-1], [-2]], np.float32)),
            ),
        )
    )
    assert found.prompt_logprobs == floats(np.nan, -1, -2)
    assert (found.topk_prompt_logprobs.length, found.topk_prompt_logprobs.k) == (3, 2)
    sparse = found.target_prompt_logprobs
    assert (sparse.dtype, list(sparse.shape), sparse.sparse_csr.values) == (1, [2, 5], floats(-4))
    assert sparse.sparse_csr.crow_indices == np.array([0, 1, 1]).tobytes()
    assert sparse.sparse_csr.col_indices == np.array([3]).tobytes()
    tokens, logprobs = found.prompt_alt_tokens.tokens, found.prompt_alt_tokens.logprobs
    assert (tokens.dtype, list(tokens.shape), tokens.dense) == (3, [2, 1], ints(1, 2))
    assert (logprobs.dtype, list(logprobs.shape), logprobs.dense) == (1, [2, 1], floats(-1, -2))


def test_the_bytes_of_a_result_are_golden() -> None:
    response = SampleResponse(
        sequences=[SampledSequence(stop_reason="length", tokens=[258], logprobs=[-1.0])],
        prompt_logprobs=np.array([np.nan, -2], np.float32),
    )
    assert write_samples(response).hex() == "0a0e08011204020100001a04000080bf12080000c07f000000c0"
