"""Rule 6: a snapshot never changes, and sampling never changes what is being trained."""

import numpy as np
from tenants import make_data, train

from weft.client import ModelInput, SamplingClient, SamplingParams, ServiceClient

PROMPT = ModelInput.from_ints([5, 17, 3, 88, 41])
GREEDY = SamplingParams(max_tokens=8, temperature=0.0, stop=[])


def scores(sampler: SamplingClient) -> list[float]:
    return [value for value in sampler.compute_logprobs(PROMPT).result(60) if value is not None]


def test_training_on_does_not_change_what_a_snapshot_samples(
    service: ServiceClient, model_path: str
) -> None:
    run = service.create_lora_training_client(model_path, rank=8, seed=1)
    train(run, 1, 2)
    snapshot = run.save_weights_and_get_sampling_client()
    before = scores(snapshot)
    tokens = snapshot.sample(PROMPT, 1, GREEDY).result(60).sequences[0].tokens
    train(run, 7, 3)
    newer = run.save_weights_and_get_sampling_client()
    assert scores(snapshot) == before
    assert snapshot.sample(PROMPT, 1, GREEDY).result(60).sequences[0].tokens == tokens
    assert scores(newer) != before


def test_sampling_an_old_snapshot_does_not_disturb_live_training(
    exact_service: ServiceClient, model_path: str
) -> None:
    plain, sampled = (
        exact_service.create_lora_training_client(model_path, rank=8, seed=1) for _ in range(2)
    )
    expected = train(plain, 1, 4)
    got = train(sampled, 1, 2)
    old = sampled.save_weights_and_get_sampling_client()
    samples = [old.sample(PROMPT, 2, SamplingParams(max_tokens=20, stop=[])) for _ in range(4)]
    got += train(sampled, 3, 2)
    assert all(len(one.result(60).sequences) == 2 for one in samples)
    assert got == expected


def test_a_fresh_adapter_samples_like_the_base_model(
    service: ServiceClient, model_path: str
) -> None:
    run = service.create_lora_training_client(model_path, rank=8, seed=1)
    base = service.create_sampling_client(base_model=model_path)
    np.testing.assert_allclose(
        scores(run.save_weights_and_get_sampling_client()), scores(base), atol=1e-5
    )


def test_the_sampler_and_the_trainer_agree_on_log_probabilities(
    service: ServiceClient, model_path: str
) -> None:
    run = service.create_lora_training_client(model_path, rank=8, seed=1)
    train(run, 1, 2)
    snapshot = run.save_weights_and_get_sampling_client()
    (datum,) = make_data(50, (24,))
    trained = run.forward([datum], "cross_entropy").result(60).loss_fn_outputs[0]["logprobs"]
    tokens = datum.model_input.append_int(int(datum.loss_fn_inputs["target_tokens"].tolist()[-1]))
    sampled = snapshot.compute_logprobs(tokens).result(60)
    assert sampled[0] is None
    np.testing.assert_allclose(np.array(sampled[1:], float), trained.to_numpy(), atol=1e-4)


def test_saved_sampler_weights_survive_their_run(service: ServiceClient, model_path: str) -> None:
    run = service.create_lora_training_client(model_path, rank=8, seed=1)
    train(run, 1, 2)
    snapshot = run.save_weights_and_get_sampling_client()
    path = run.save_weights_for_sampler("kept").result(60).path
    train(run, 5, 1)
    np.testing.assert_allclose(
        scores(service.create_sampling_client(model_path=path)), scores(snapshot), atol=1e-6
    )
