"""Clients to sample from: of a path, of a moment of training, in another process."""

import multiprocessing
import pickle
from typing import Any

import numpy as np
import pytest
from talking import SERVED_ALONE, assert_close, datum, logprobs_of, prompt, settled, since, step
from tinker import SamplingClient, ServiceClient, types

WORDS = "the red fox sees"


def _scores(sampler: Any) -> np.ndarray:
    return np.array(sampler.compute_logprobs(prompt(WORDS)).result()[1:])


def _exact(trainer: Any) -> np.ndarray:
    return logprobs_of(trainer.forward([datum(WORDS)], "cross_entropy").result())[0]


def test_an_ephemeral_client_keeps_the_weights_of_its_moment(trainer: Any) -> None:
    step(trainer)
    moment = _exact(trainer)
    sampler = settled(trainer.save_weights_and_get_sampling_client())
    step(trainer)
    assert_close(_scores(sampler), moment, SERVED_ALONE)
    later = settled(trainer.save_weights_and_get_sampling_client())
    assert_close(_scores(later), _exact(trainer), SERVED_ALONE)


def test_named_weights_are_sampled_by_their_path(service: ServiceClient, trainer: Any) -> None:
    step(trainer)
    path = trainer.save_weights_for_sampler("kept").result().path
    assert path == f"tinker://{trainer.get_info().model_id}/sampler_weights/kept"
    of_trainer = settled(trainer.create_sampling_client(path))
    of_service = settled(service.create_sampling_client(model_path=path))
    assert_close(_scores(of_trainer), _exact(trainer), SERVED_ALONE)
    assert_close(_scores(of_service), _scores(of_trainer))


def test_an_adapter_is_not_the_base_model(service: ServiceClient, trainer: Any) -> None:
    base = settled(service.create_sampling_client(base_model="weft/tiny"))
    step(trainer, WORDS)
    adapted = settled(trainer.save_weights_and_get_sampling_client())
    assert _scores(adapted).sum() > _scores(base).sum() + 0.1


def test_the_rest_client_knows_a_sampler(service: ServiceClient, trainer: Any, rest: Any) -> None:
    path = trainer.save_weights_for_sampler("kept").result().path
    settled(service.create_sampling_client(model_path=path))
    run = trainer.get_info().model_id
    session = rest.get_session(run.split(":")[0]).result()
    (sampler_id,) = session.sampler_ids
    told = rest.get_sampler(sampler_id).result()
    assert (told.sampler_id, told.base_model, told.model_path) == (sampler_id, "weft/tiny", path)


def _score_elsewhere(pickled: bytes, answers: Any) -> None:
    answers.put(_scores(pickle.loads(pickled)).tolist())


def test_a_pickled_client_samples_in_another_process(trainer: Any) -> None:
    step(trainer)
    sampler = settled(trainer.save_weights_and_get_sampling_client())
    here = _scores(sampler)
    spawning = multiprocessing.get_context("spawn")
    answers = spawning.Queue()
    child = spawning.Process(target=_score_elsewhere, args=(pickle.dumps(sampler), answers))
    child.start()
    try:
        assert_close(answers.get(timeout=90), here)
    finally:
        child.join(timeout=30)
        child.kill()


def test_clones_of_a_client_do_not_mistake_their_samples(trainer: Any) -> None:
    sampler = settled(trainer.save_weights_and_get_sampling_client())
    clones = [pickle.loads(pickle.dumps(sampler)) for _ in range(3)]
    params = types.SamplingParams(max_tokens=6, seed=1, stop=[])
    asked = [
        client.sample(prompt(WORDS), count + 1, params)
        for count, client in enumerate([sampler, *clones])
    ]
    assert [len(each.result().sequences) for each in asked] == [1, 2, 3, 4]


@since(0, 33)
def test_a_handle_makes_a_client_for_a_holder_of_the_key(server: Any, trainer: Any) -> None:
    sampler = settled(trainer.save_weights_and_get_sampling_client())
    handle = sampler.get_sampler_handle()
    other = SamplingClient.from_sampler_handle(handle, api_key=server.key)
    assert_close(_scores(other), _scores(sampler))


def test_an_abandoned_sample_harms_no_other(service: ServiceClient) -> None:
    sampler = settled(service.create_sampling_client(base_model="weft/tiny"))
    params = types.SamplingParams(max_tokens=400, stop=[])
    long = sampler.sample(prompt(WORDS), 4, params)
    with pytest.raises(TimeoutError):
        long.result(timeout=0.05)
    short = sampler.sample(prompt(WORDS), 1, types.SamplingParams(max_tokens=2, stop=[]))
    assert len(short.result().sequences[0].tokens) == 2
