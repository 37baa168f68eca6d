"""Sampling: what is sent, what comes back, and what is refused before it is sent."""

import asyncio
import gc
from typing import Any

import numpy as np
import pytest
from fake_broker import CARD, DEADLINE_S, FakeBroker, sample, silent

from weft.client import (
    AdamParams,
    BadRequest,
    ModelInput,
    NotFound,
    SamplingClient,
    SamplingParams,
    ServiceClient,
    TensorData,
)
from weft.client.messages import Sample

PROMPT = ModelInput.from_ints([1, 2, 3])


@pytest.fixture
def sampler(service: ServiceClient) -> SamplingClient:
    return service.create_sampling_client(base_model="tiny")


def sent(broker: FakeBroker, sampler: SamplingClient, params: SamplingParams) -> Sample:
    sampler.sample(PROMPT, 1, params).result(DEADLINE_S)
    header = broker.wait_for("sample")[-1]
    assert isinstance(header, Sample)
    return header


def test_sequences_have_tokens_logprobs_and_a_reason(sampler: SamplingClient) -> None:
    response = sampler.sample(PROMPT, 2, SamplingParams(max_tokens=4)).result(DEADLINE_S)
    first, second = response.sequences
    assert (first.tokens, first.stop_reason) == ([4], "length")
    assert second.tokens == [4, 5]
    assert (second.logprobs or []) == [pytest.approx(-0.04), pytest.approx(-0.05)]
    assert first.sequence_id != second.sequence_id
    assert response.prompt_logprobs is None


def test_prompt_logprobs_begin_with_none(sampler: SamplingClient) -> None:
    params = SamplingParams(max_tokens=1)
    response = sampler.sample(PROMPT, 1, params, include_prompt_logprobs=True).result(DEADLINE_S)
    expected = [None, pytest.approx(-0.02), pytest.approx(-0.03)]
    assert response.prompt_logprobs == expected
    assert sampler.compute_logprobs(PROMPT).result(DEADLINE_S) == expected


def test_defaults_are_those_of_the_sdk(broker: FakeBroker, sampler: SamplingClient) -> None:
    header = sent(broker, sampler, SamplingParams())
    assert (header.max_tokens, header.temperature, header.top_k, header.top_p) == (-1, 1.0, -1, 1.0)
    assert (header.stop_tokens, header.stop_strings, header.default_stop) == ([], [], True)


def test_a_seed_is_drawn_once_for_each_request(broker: FakeBroker, sampler: SamplingClient) -> None:
    drawn = {sent(broker, sampler, SamplingParams()).seed for _ in range(5)}
    assert len(drawn) == 5
    assert [sent(broker, sampler, SamplingParams(seed=seed)).seed for seed in (-3, 0)] == [-3, 0]


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        pytest.param(None, ([], [], True), id="end of sequence"),
        pytest.param([], ([], [], False), id="nothing"),
        pytest.param("a", ([], ["a"], False), id="string"),
        pytest.param(["a", "b"], ([], ["a", "b"], False), id="strings"),
        pytest.param([7, 8], ([7, 8], [], False), id="tokens"),
    ],
)
def test_stops_travel_as_given(
    broker: FakeBroker, sampler: SamplingClient, stop: Any, expected: tuple[Any, ...]
) -> None:
    header = sent(broker, sampler, SamplingParams(stop=stop))
    assert (header.stop_tokens, header.stop_strings, header.default_stop) == expected


@pytest.mark.parametrize(
    ("params", "message"),
    [
        pytest.param({"max_tokens": 0}, "max_tokens is 0", id="no tokens"),
        pytest.param({"max_tokens": 62}, "exceed the context of 64", id="context"),
        pytest.param({"temperature": -1.0}, "temperature is -1.0", id="cold"),
        pytest.param({"temperature": float("inf")}, "temperature is inf", id="hot"),
        pytest.param({"top_p": 0}, "top_p is 0", id="top_p 0"),
        pytest.param({"top_p": 1.5}, "top_p is 1.5", id="top_p"),
        pytest.param({"top_k": 0}, "top_k is 0", id="top_k"),
        pytest.param({"seed": 1.5}, "seed is 1.5", id="seed"),
        pytest.param({"stop": [1, "a"]}, "stop must be", id="mixed stops"),
        pytest.param({"stop": ""}, "stop must be", id="empty stop"),
        pytest.param({"stop": [100]}, "a stop token is 100", id="stop token"),
        pytest.param({"stop": ["a"] * 300}, "300 stops, at most 256", id="many stops"),
    ],
)
def test_a_bad_parameter_is_refused(
    sampler: SamplingClient, params: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadRequest, match=message):
        sampler.sample(PROMPT, 1, SamplingParams(**params))


def test_what_is_asked_of_the_prompt_travels_and_comes_back(
    broker: FakeBroker, sampler: SamplingClient
) -> None:
    response = sampler.sample(
        PROMPT,
        2,
        SamplingParams(max_tokens=4),
        include_prompt_logprobs=True,
        topk_prompt_logprobs=2,
        topk_sample_logprobs=1,
        target_prompt_logprobs=TensorData(np.array([[7, -1], [-1, 8]])),
        prompt_alt_tokens_k=3,
        prompt_logprobs_last_n=1,
    ).result(DEADLINE_S)
    header = broker.wait_for("sample")[-1]
    assert isinstance(header, Sample)
    arrays = broker.arrays[broker.seen.index(header)]
    assert (header.topk_prompt_logprobs, header.topk_sample_logprobs) == (2, 1)
    assert (header.prompt_alt_tokens_k, header.prompt_logprobs_last_n) == (3, 1)
    assert arrays["target_counts"].tolist() == [1, 1]
    assert arrays["target_tokens"].tolist() == [7, 8]
    assert response.prompt_logprobs == [None, None, pytest.approx(-0.03)]
    assert response.topk_prompt_logprobs == [None, None, [(1, -1.0), (2, -2.0)]]
    assert [one.topk_logprobs for one in response.sequences] == [[[(1, -1.0)]], [[(1, -1.0)]] * 2]
    assert response.target_prompt_logprobs == TensorData(np.array([[-7.0, 0.0], [0.0, -8.0]]))
    assert response.prompt_alt_tokens is not None
    assert response.prompt_alt_tokens.tokens.tolist() == [[1, 2, 3]] * 2


def test_the_last_tokens_alone_can_be_scored(sampler: SamplingClient) -> None:
    scored = sampler.compute_logprobs(PROMPT, prompt_logprobs_last_n=1).result(DEADLINE_S)
    assert scored == [None, None, pytest.approx(-0.03)]


def test_what_was_not_asked_for_is_none(sampler: SamplingClient) -> None:
    response = sampler.sample(PROMPT, 1, SamplingParams()).result(DEADLINE_S)
    assert response.topk_prompt_logprobs is None
    assert response.target_prompt_logprobs is None
    assert response.prompt_alt_tokens is None
    assert response.sequences[0].topk_logprobs is None


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            {"topk_prompt_logprobs": 129},
            "topk_prompt_logprobs is 129, not an integer from 0 to 128",
        ),
        ({"topk_sample_logprobs": -1}, "topk_sample_logprobs is -1"),
        ({"prompt_alt_tokens_k": True}, "prompt_alt_tokens_k is True"),
        ({"target_prompt_logprobs": [[1], [2]]}, "target_prompt_logprobs is .* not a TensorData"),
        ({"prompt_logprobs_last_n": 1}, "prompt_logprobs_last_n needs prompt logprobs"),
        (
            {"prompt_logprobs_last_n": 0, "include_prompt_logprobs": True},
            "prompt_logprobs_last_n is 0, not an integer from 1 to 2",
        ),
        (
            {"prompt_logprobs_last_n": 3, "include_prompt_logprobs": True},
            "prompt_logprobs_last_n is 3, not an integer from 1 to 2",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_bad_option_is_refused_by_name(
    sampler: SamplingClient, option: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadRequest, match=message):
        sampler.sample(PROMPT, 1, SamplingParams(), **option)


@pytest.mark.parametrize("number", [0, 5000, 1.0, True])
def test_a_bad_number_of_samples_is_refused(sampler: SamplingClient, number: Any) -> None:
    with pytest.raises(BadRequest, match="num_samples"):
        sampler.sample(PROMPT, number, SamplingParams())


def test_an_empty_prompt_is_refused(sampler: SamplingClient) -> None:
    with pytest.raises(BadRequest, match="the prompt is empty"):
        sampler.sample(ModelInput.empty(), 1, SamplingParams())


def test_coroutines_get_the_finished_result(sampler: SamplingClient) -> None:
    async def draw() -> list[int]:
        responses = await asyncio.gather(
            *(sampler.sample_async(PROMPT, 1, SamplingParams()) for _ in range(10))
        )
        return [response.sequences[0].tokens[0] for response in responses]

    assert asyncio.run(draw()) == [4] * 10


def test_a_forgotten_sampler_is_closed(broker: FakeBroker, service: ServiceClient) -> None:
    run = service.create_lora_training_client("tiny")
    sampler = run.save_weights_and_get_sampling_client()
    sampler_id = sampler.sampler_id
    del sampler
    gc.collect()
    run.optim_step(AdamParams()).result(DEADLINE_S)
    assert [header.sampler_id for header in broker.wait_for("close_sampler")] == [sampler_id]


def test_a_forgotten_sampler_stays_open_until_it_has_answered(
    broker: FakeBroker, service: ServiceClient
) -> None:
    run = service.create_lora_training_client("tiny")
    broker.answers["sample"] = silent
    pending = run.save_weights_and_get_sampling_client().sample(PROMPT, 1, SamplingParams())
    (header,) = broker.wait_for("sample")
    gc.collect()
    run.optim_step(AdamParams()).result(DEADLINE_S)
    assert "close_sampler" not in [seen.kind for seen in broker.seen]
    broker.push(sample(header, broker.arrays[broker.seen.index(header)])[0])
    assert pending.result(DEADLINE_S).sequences[0].tokens == [4]
    gc.collect()
    run.optim_step(AdamParams()).result(DEADLINE_S)
    broker.wait_for("close_sampler")


def test_a_closed_sampler_is_given_up_once_and_takes_no_more_calls(
    broker: FakeBroker, service: ServiceClient
) -> None:
    with service.create_sampling_client(base_model="tiny") as sampler:
        sampler.sample(PROMPT, 1, SamplingParams()).result(DEADLINE_S)
    with pytest.raises(NotFound, match="was closed"):
        sampler.compute_logprobs(PROMPT)
    sampler.close()
    sampler_id = sampler.sampler_id
    del sampler
    gc.collect()
    service.get_server_capabilities()
    assert [header.sampler_id for header in broker.wait_for("close_sampler")] == [sampler_id]


def test_a_copy_of_a_sampler_closes_itself_alone(
    broker: FakeBroker, service: ServiceClient
) -> None:
    session = service._session
    copy = SamplingClient(session, f"{session.connection.session_id}:sample:9", CARD, False)
    copy.close()
    with pytest.raises(NotFound, match="was closed"):
        copy.compute_logprobs(PROMPT)
    service.get_server_capabilities()
    assert "close_sampler" not in [seen.kind for seen in broker.seen]


def test_the_base_model_is_known(sampler: SamplingClient) -> None:
    assert sampler.get_base_model() == "tiny"
    assert sampler.result() is sampler
