"""What a sample request asks beside samples, from the client to the model and back."""

from collections.abc import Iterator

import numpy as np
import pytest
from raw_client import RawClient
from tenants import VOCAB_SIZE, train

from weft.client import (
    APIFuture,
    Datum,
    ModelInput,
    SampleResponse,
    SamplingClient,
    SamplingParams,
    ServiceClient,
    TensorData,
    TrainingClient,
)
from weft.client.arrays import pack_arrays
from weft.client.messages import CreateSampler, Failure, Sample
from weft.client.wire import encode_signed
from weft.engine import Engine

PROMPT = np.random.default_rng(0).integers(0, VOCAB_SIZE, 20)
LAST = len(PROMPT) - 1
PARAMS = SamplingParams(max_tokens=4, seed=3)
CELLS = np.full((LAST, 3), -1)
CELLS[4], CELLS[18, 1] = [0, 96, 50], 7

# float32 through two other paths
CLOSE = 1e-4


@pytest.fixture(scope="module")
def tenant(engine: Engine, model_path: str) -> Iterator[tuple[TrainingClient, SamplingClient]]:
    with engine.client() as service:
        run = service.create_lora_training_client(model_path, rank=8, seed=1)
        train(run, 5, steps=2)
        yield run, run.save_weights_and_get_sampling_client()


def all_logprobs(run: TrainingClient) -> np.ndarray:
    """Of every token in place of each of the prompt's after the first, by a forward pass."""
    targets = np.tile(np.arange(VOCAB_SIZE), (LAST, 1))
    weights = np.ones(targets.shape, np.float32)
    datum = Datum(ModelInput.from_ints(PROMPT[:-1]), {"target_tokens": targets, "weights": weights})
    output = run.forward([datum], "cross_entropy").result(60)
    return output.loss_fn_outputs[0]["logprobs"].to_numpy()


@pytest.fixture(scope="module")
def expected(tenant: tuple[TrainingClient, SamplingClient]) -> np.ndarray:
    return all_logprobs(tenant[0])


@pytest.fixture(scope="module")
def response(tenant: tuple[TrainingClient, SamplingClient]) -> SampleResponse:
    """What a trained adapter answers to a request that asks everything about its prompt."""
    asked = tenant[1].sample(
        ModelInput.from_ints(PROMPT),
        2,
        PARAMS,
        include_prompt_logprobs=True,
        topk_prompt_logprobs=VOCAB_SIZE,
        target_prompt_logprobs=TensorData(CELLS),
        prompt_alt_tokens_k=5,
        prompt_logprobs_last_n=6,
    )
    return asked.result(60)


def test_the_last_tokens_are_scored_as_the_trainer_does(
    response: SampleResponse, expected: np.ndarray
) -> None:
    own = response.prompt_logprobs_np
    assert own is not None
    assert np.isnan(own[:14]).all()
    np.testing.assert_allclose(own[14:], expected[np.arange(13, 19), PROMPT[14:]], atol=CLOSE)


def test_the_likeliest_tokens_are_those_of_the_trainer(
    response: SampleResponse, expected: np.ndarray
) -> None:
    top, lists = response.topk_prompt_logprobs_np, response.topk_prompt_logprobs
    assert top is not None
    assert lists is not None
    assert [each is None for each in lists] == [True] * 14 + [False] * 6
    ids, found = top.token_ids[14:], top.logprobs[14:]
    np.testing.assert_allclose(found, np.take_along_axis(expected[13:], ids, 1), atol=CLOSE)
    assert (np.diff(found) <= 0).all()


def test_alternatives_and_targets_are_scored_as_the_trainer_does(
    response: SampleResponse, expected: np.ndarray
) -> None:
    alternatives, scored = response.prompt_alt_tokens, response.target_prompt_logprobs
    assert alternatives is not None
    ids, found = alternatives.tokens.to_numpy(), alternatives.logprobs.to_numpy()
    np.testing.assert_allclose(found, np.take_along_axis(expected, ids, 1), atol=CLOSE)
    assert scored is not None
    wanted = np.where(CELLS < 0, 0, np.take_along_axis(expected, CELLS, 1))
    np.testing.assert_allclose(scored.to_numpy(), wanted, atol=CLOSE)


def test_a_sparse_question_has_a_sparse_answer(
    tenant: tuple[TrainingClient, SamplingClient], expected: np.ndarray
) -> None:
    given = TensorData(
        [5, 6],
        shape=[LAST, 40],
        sparse_crow_indices=[0] * LAST + [2],
        sparse_col_indices=[3, 39],
    )
    prompt = ModelInput.from_ints(PROMPT)
    response = tenant[1].sample(prompt, 1, PARAMS, target_prompt_logprobs=given).result(60)
    scored = response.target_prompt_logprobs
    assert scored is not None
    assert (scored.shape, scored.csr) == ([LAST, 40], given.csr)
    np.testing.assert_allclose(scored.array, expected[-1, [5, 6]], atol=CLOSE)


def test_the_likeliest_of_many_long_samples_come_in_several_parts(
    service: ServiceClient, model_path: str
) -> None:
    sampler = service.create_sampling_client(base_model=model_path)
    params = SamplingParams(max_tokens=40, temperature=0.7, seed=1, stop=[])
    # 64 x 40 tokens x 97 pairs of 8 bytes: twice a part
    response = sampler.sample(
        ModelInput.from_ints([1, 2]), 64, params, topk_sample_logprobs=VOCAB_SIZE
    ).result(60)
    for sequence in response.sequences:
        top = sequence.topk_logprobs_np
        assert top is not None
        assert top.token_ids.shape == (40, VOCAB_SIZE)
        is_drawn = top.token_ids == np.array(sequence.tokens)[:, None]
        assert top.logprobs[is_drawn].tolist() == sequence.logprobs
        np.testing.assert_allclose(np.exp(top.logprobs).sum(1), 1, atol=CLOSE)


def test_one_request_beside_others_has_the_bits_of_one_alone(
    exact_service: ServiceClient, model_path: str
) -> None:
    sampler = exact_service.create_sampling_client(base_model=model_path)

    def ask(length: int) -> APIFuture[SampleResponse]:
        return sampler.sample(
            ModelInput.from_ints(PROMPT[:length]),
            1,
            PARAMS,
            topk_prompt_logprobs=7,
            topk_sample_logprobs=7,
            prompt_alt_tokens_k=3,
        )

    together = [future.result(60) for future in [ask(length) for length in (5, 20, 11)]]
    alone = ask(20).result(60)
    assert alone.topk_prompt_logprobs == together[1].topk_prompt_logprobs
    assert alone.sequences[0].topk_logprobs == together[1].sequences[0].topk_logprobs
    assert alone.prompt_alt_tokens is not None
    assert together[1].prompt_alt_tokens is not None
    assert alone.prompt_alt_tokens.tokens == together[1].prompt_alt_tokens.tokens
    assert alone.prompt_alt_tokens.logprobs == together[1].prompt_alt_tokens.logprobs


def test_a_raw_client_is_refused_by_name(engine: Engine) -> None:
    raw = RawClient(engine._context, engine.address)
    sampler_id = f"{raw.session_id}:sample:0"
    raw.send(CreateSampler(request_id=1, sampler_id=sampler_id, base_model=raw.model))
    raw.answers(1)
    arrays, frames = pack_arrays({"tokens": np.array([1, 2], np.int32)})
    header = Sample(
        request_id=2,
        sampler_id=sampler_id,
        digest=b"",
        num_tokens=2,
        num_samples=1,
        max_tokens=1,
        temperature=1.0,
        top_k=-1,
        top_p=1.0,
        seed=0,
        stop_tokens=[],
        stop_strings=[],
        default_stop=True,
        prompt_logprobs=False,
        prompt_alt_tokens_k=1000,
        arrays=arrays,
    )
    raw.send_bytes(encode_signed(header, frames), *map(bytes, frames))
    answer = raw.answers(1)[2]
    raw.socket.close()
    assert isinstance(answer, Failure)
    assert "prompt_alt_tokens_k is 1000, not an integer from 0 to 128" in answer.detail
