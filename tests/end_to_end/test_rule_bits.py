"""In deterministic mode a token has one log-probability, whoever computes it beside whomever."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tenants import VOCAB_SIZE, train

from weft.client import Datum, ModelInput, SamplingParams, ServiceClient
from weft.engine import Engine
from weft.engine.trace import read_stats, read_trace

RANKS = (4, 16, 33, 64)
PROMPTS = (1, 2, 17, 64, 100)


@pytest.fixture
def traced(model_path: str, tmp_path: Path) -> Iterator[tuple[Engine, Path]]:
    """A deterministic engine with a trace, and where that is."""
    trace = tmp_path / "run.trace.json"
    with Engine(
        model_path, memory_bytes=1 << 30, is_deterministic=True, unit_tokens=64, trace=str(trace)
    ) as engine:
        yield engine, trace


def datum_of(tokens: list[int]) -> Datum:
    targets = np.array(tokens[1:])
    inputs = {"target_tokens": targets, "weights": np.ones(len(targets), np.float32)}
    return Datum(ModelInput.from_ints(tokens[:-1]), inputs)


def check_tenant(service: ServiceClient, model: str, place: int, ready: threading.Barrier) -> int:
    """Train, sample, and compare what decode, prefill and training say; returns tokens compared."""
    run = service.create_lora_training_client(model, rank=RANKS[place], seed=place)
    train(run, place, 2)
    sampler = run.save_weights_and_get_sampling_client()
    rng = np.random.default_rng(place)
    prompts = [rng.integers(0, VOCAB_SIZE, length).tolist() for length in PROMPTS]
    params = SamplingParams(max_tokens=12, temperature=1.0, seed=place, stop=[])
    ready.wait(60)
    asked = [sampler.sample(ModelInput.from_ints(prompt), 1, params) for prompt in prompts]
    answers = [each.result(60).sequences[0] for each in asked]
    texts = [[*prompt, *one.tokens] for prompt, one in zip(prompts, answers, strict=True)]
    scoring = [sampler.compute_logprobs(ModelInput.from_ints(text)) for text in texts]
    ready.wait(60)
    data = [datum_of(text) for text in texts]
    forward = run.forward(data, "cross_entropy")
    backward = run.forward_backward(data, "cross_entropy")
    for index, (text, answer) in enumerate(zip(texts, answers, strict=True)):
        scored = np.array(scoring[index].result(60)[1:], np.float32)
        for output in (forward.result(60), backward.result(60)):
            trained = output.loss_fn_outputs[index]["logprobs"].to_numpy()
            np.testing.assert_array_equal(trained, scored)
        sampled = np.array(answer.logprobs, np.float32)
        np.testing.assert_array_equal(sampled, scored[len(text) - 1 - len(sampled) :])
    return sum(len(one.tokens) for one in answers)


def test_sampling_scoring_and_training_agree_to_the_bit_in_company(
    traced: tuple[Engine, Path], model_path: str
) -> None:
    engine, trace = traced
    ready = threading.Barrier(len(RANKS))

    def tenant(place: int) -> int:
        with engine.client() as service:
            return check_tenant(service, model_path, place, ready)

    with ThreadPoolExecutor(len(RANKS)) as pool:
        compared = list(pool.map(tenant, range(len(RANKS))))
    assert compared == [12 * len(PROMPTS)] * len(RANKS)
    assert max(read_stats(trace).batches_by_tenants) >= 3
    samples = [span["args"] for span in read_trace(trace) if span["name"] == "sample"]
    assert max(sample["tenants"] for sample in samples) >= 3
