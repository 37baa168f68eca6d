"""A mixture of experts with windows and sinks, in transformers' code, served like any other."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hosted_models import own_module, save_family
from sampling_helpers import hf_greedy
from tenants import logprobs, make_data, train

from weft.client import (
    BadRequest,
    ModelInput,
    SamplingClient,
    SamplingParams,
    ServiceClient,
    TrainingClient,
)
from weft.engine import Engine

PROMPT = ModelInput.from_ints([5, 17, 3, 88, 41, 12, 9, 60, 33, 71])  # longer than the window
GREEDY = SamplingParams(max_tokens=12, temperature=0.0, stop=[])


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_family(tmp_path_factory.mktemp("gpt_oss"), "gpt_oss"))


@pytest.fixture(scope="module")
def engine(model_path: str) -> Iterator[Engine]:
    with Engine(model_path, memory_bytes=1 << 30) as running:
        yield running


def new_run(service: ServiceClient, path: str, seed: int = 1, rank: int = 8) -> TrainingClient:
    return service.create_lora_training_client(path, rank=rank, seed=seed, train_mlp=False)


def greedy(sampler: SamplingClient) -> list[int]:
    return list(sampler.sample(PROMPT, 1, GREEDY).result(60).sequences[0].tokens)


def test_its_card_says_what_is_adapted_and_what_is_frozen(service: ServiceClient) -> None:
    (card,) = service.get_server_capabilities().supported_models
    assert (card.model_type, card.runs_on) == ("gpt_oss", "packed")
    assert card.targets == ["attn", "unembed"]
    assert "frozen: model.layers.*.mlp.experts (experts)" in card.notes


def test_a_family_without_linears_is_refused_by_name(
    service: ServiceClient, model_path: str
) -> None:
    with pytest.raises(BadRequest, match=r"no mlp linears.*\(train_mlp\); it has attn, unembed"):
        service.create_lora_training_client(model_path, rank=8).get_info()


def test_it_samples_as_transformers_does(service: ServiceClient, model_path: str) -> None:
    sampler = service.create_sampling_client(base_model=model_path)
    assert greedy(sampler) == hf_greedy(own_module(Path(model_path)), PROMPT.to_ints(), 12)


def test_the_sampler_and_the_trainer_agree(service: ServiceClient, model_path: str) -> None:
    run = new_run(service, model_path)
    train(run, 0, 2)
    snapshot = run.save_weights_and_get_sampling_client()
    (datum,) = make_data(50, (40,))
    trained = run.forward([datum], "cross_entropy").result(60).loss_fn_outputs[0]["logprobs"]
    tokens = datum.model_input.append_int(int(datum.loss_fn_inputs["target_tokens"].tolist()[-1]))
    sampled = snapshot.compute_logprobs(tokens).result(60)
    # float32 in another order of summation
    np.testing.assert_allclose(np.array(sampled[1:], float), trained.to_numpy(), atol=1e-4)


def test_a_snapshot_stays_as_it_is_while_training_goes_on(
    service: ServiceClient, model_path: str
) -> None:
    run = new_run(service, model_path)
    train(run, 0, 2)
    snapshot = run.save_weights_and_get_sampling_client()
    before = snapshot.compute_logprobs(PROMPT).result(60), greedy(snapshot)
    train(run, 5, 2)
    assert (snapshot.compute_logprobs(PROMPT).result(60), greedy(snapshot)) == before


def test_a_saved_state_goes_on_as_if_nothing_had_happened(
    service: ServiceClient, model_path: str
) -> None:
    run = new_run(service, model_path)
    train(run, 0, 2)
    path = run.save_state("half").result(60).path
    expected = train(run, 7, 2)
    resumed = service.create_training_client_from_state_with_optimizer(path)
    np.testing.assert_allclose(train(resumed, 7, 2), expected, rtol=1e-6)


def test_deterministic_mode_gives_the_same_bits_beside_others(model_path: str) -> None:
    with Engine(model_path, memory_bytes=1 << 30, is_deterministic=True) as running:
        service = running.client()
        alone = train(new_run(service, model_path), 0, 3)
        run = new_run(service, model_path)
        seen = logprobs(run)
        others = [new_run(service, model_path, seed, rank=3 * seed) for seed in (2, 3)]
        samplers = [service.create_sampling_client(base_model=model_path) for _ in range(2)]
        busy = [
            one.sample(PROMPT, 2, SamplingParams(max_tokens=8, seed=1, stop=[])) for one in samplers
        ]
        busy_runs = [other.forward_backward(make_data(9), "cross_entropy") for other in others]
        beside = train(run, 0, 3)
        assert beside == alone
        assert np.array_equal(seen, logprobs(new_run(service, model_path)))
        for future in (*busy, *busy_runs):
            future.result(60)
