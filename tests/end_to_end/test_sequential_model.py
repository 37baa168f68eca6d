"""A model that cannot be packed, a hybrid of recurrence and attention, served like any other."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from sampling_helpers import hf_greedy
from sequential_models import random_hybrid
from tenants import make_data
from transformers import PreTrainedModel

from weft.client import (
    AdamParams,
    ModelInput,
    SamplingClient,
    SamplingParams,
    ServiceClient,
    TrainingClient,
)
from weft.engine import Engine

PROMPT = ModelInput.from_ints([5, 17, 3, 88, 41])
GREEDY = SamplingParams(max_tokens=8, temperature=0.0, stop=[])


@pytest.fixture(scope="module")
def hf() -> PreTrainedModel:
    model: PreTrainedModel = random_hybrid()
    return model


@pytest.fixture(scope="module")
def model_path(hf: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("hybrid"))
    hf.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def engine(model_path: str) -> Iterator[Engine]:
    with Engine(model_path, memory_bytes=1 << 30) as running:
        yield running


def overfit(run: TrainingClient, seed: int, steps: int) -> list[float]:
    """Losses of steps on the same data."""
    losses = []
    for _ in range(steps):
        passed = run.forward_backward(make_data(seed), "cross_entropy")
        run.optim_step(AdamParams(learning_rate=1e-2))
        losses.append(passed.result(60).metrics["loss:sum"])
    return losses


def greedy(sampler: SamplingClient) -> list[int]:
    return list(sampler.sample(PROMPT, 1, GREEDY).result(60).sequences[0].tokens)


def scores(sampler: SamplingClient) -> list[float]:
    return [value for value in sampler.compute_logprobs(PROMPT).result(60) if value is not None]


def test_its_card_says_how_it_runs(service: ServiceClient) -> None:
    (card,) = service.get_server_capabilities().supported_models
    assert (card.model_type, card.runs_on) == ("qwen3_next", "sequential")


def test_it_samples_as_transformers_does(
    service: ServiceClient, model_path: str, hf: PreTrainedModel
) -> None:
    sampler = service.create_sampling_client(base_model=model_path)
    assert greedy(sampler) == hf_greedy(hf, PROMPT.to_ints(), 8)


def test_it_trains_and_the_loss_falls(service: ServiceClient, model_path: str) -> None:
    run = service.create_lora_training_client(model_path, rank=8, seed=1)
    losses = overfit(run, 1, 6)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.8 * losses[0]


def test_a_snapshot_stays_as_it_is_while_training_goes_on(
    service: ServiceClient, model_path: str
) -> None:
    run = service.create_lora_training_client(model_path, rank=8, seed=1)
    overfit(run, 1, 2)
    snapshot = run.save_weights_and_get_sampling_client()
    before = scores(snapshot), greedy(snapshot)
    overfit(run, 7, 3)
    newer = run.save_weights_and_get_sampling_client()
    assert (scores(snapshot), greedy(snapshot)) == before
    assert scores(newer) != before[0]


def test_several_adapters_sample_at_once(service: ServiceClient, model_path: str) -> None:
    samplers = [service.create_sampling_client(base_model=model_path)]
    for seed in (1, 2):
        run = service.create_lora_training_client(model_path, rank=4 * seed, seed=seed)
        overfit(run, seed, 3)
        samplers.append(run.save_weights_and_get_sampling_client())
    alone = [scores(sampler) for sampler in samplers]
    params = SamplingParams(max_tokens=20, stop=[])
    pending = [sampler.sample(PROMPT, 3, params) for sampler in samplers for _ in range(2)]
    together = [sampler.compute_logprobs(PROMPT) for sampler in samplers]
    for expected, future in zip(alone, together, strict=True):
        assert future.result(60)[1:] == expected
    assert all(len(one.result(60).sequences) == 3 for one in pending)
    assert len({tuple(values) for values in alone}) == 3


def test_the_sampler_and_the_trainer_agree(service: ServiceClient, model_path: str) -> None:
    run = service.create_lora_training_client(model_path, rank=8, seed=1)
    overfit(run, 1, 2)
    snapshot = run.save_weights_and_get_sampling_client()
    (datum,) = make_data(50, (24,))
    trained = run.forward([datum], "cross_entropy").result(60).loss_fn_outputs[0]["logprobs"]
    tokens = datum.model_input.append_int(int(datum.loss_fn_inputs["target_tokens"].tolist()[-1]))
    sampled = snapshot.compute_logprobs(tokens).result(60)
    # float32 in another order of summation, carried along by the recurrence
    np.testing.assert_allclose(np.array(sampled[1:], float), trained.to_numpy(), atol=1e-3)


def test_in_deterministic_mode_no_bit_depends_on_the_neighbours(model_path: str) -> None:
    def losses(service: ServiceClient) -> list[float]:
        run = service.create_lora_training_client(model_path, rank=8, seed=1)
        found = overfit(run, 1, 3)
        return [*found, *scores(run.save_weights_and_get_sampling_client())]

    settings: dict[str, Any] = {"memory_bytes": 1 << 30, "is_deterministic": True}
    with Engine(model_path, **settings) as engine, engine.client() as service:
        alone = losses(service)
        other = service.create_lora_training_client(model_path, rank=16, seed=2)
        sampler = service.create_sampling_client(base_model=model_path)
        beside = [other.forward_backward(make_data(seed), "cross_entropy") for seed in range(4)]
        endless = sampler.sample(PROMPT, 8, SamplingParams(max_tokens=60, stop=[]))
        assert losses(service) == alone
        assert len(endless.result(60).sequences) == 8
        assert all(future.result(60).metrics for future in beside)


def test_a_client_that_leaves_makes_room_at_once(engine: Engine, model_path: str) -> None:
    endless = SamplingParams(max_tokens=100, stop=[])
    with engine.client() as leaving:
        first = leaving.create_sampling_client(base_model=model_path)
        pending = first.sample(PROMPT, 1000, endless)
        leaving.create_lora_training_client(model_path, rank=1)  # answered after it has begun
    with engine.client() as staying:
        sampler = staying.create_sampling_client(base_model=model_path)
        # Nothing overtakes: this would wait for 100,000 passes of the other's.
        assert len(greedy(sampler)) == 8
    assert pending.future().done()
