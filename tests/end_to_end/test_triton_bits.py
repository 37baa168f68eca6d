"""Deterministic mode by the Triton kernels: bits of what a user sees, through the whole engine."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import interpreter
import numpy as np
import pytest
from random_models import save_random_model
from tenants import VOCAB_SIZE, grad_norm, make_data

from weft.client import (
    AdamParams,
    Datum,
    ModelInput,
    SamplingParams,
    ServiceClient,
    TrainingClient,
)
from weft.engine import Engine
from weft.engine.trace import read_trace

PROMPTS = ([5], [1, 2, 3, 4, 5])
NUM_NEW = 2
RANK = 7
Text = tuple[list[int], list[float]]  # prompt and answer, log-probabilities of the answer


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trace") / "trace.json"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, trace: Path) -> Iterator[ServiceClient]:
    path = tmp_path_factory.mktemp("model")
    save_random_model(path, "qwen2", vocab_size=VOCAB_SIZE, num_layers=1, is_tied=True)  # biases
    with (
        Engine(
            str(path),
            device=interpreter.kernel_device().type,
            kernels="triton",
            dtype="float32",
            is_deterministic=True,
            memory_bytes=1 << 30,
            trace=str(trace),
        ) as engine,
        engine.client() as client,
    ):
        yield client


@pytest.fixture(scope="module")
def others(service: ServiceClient) -> list[TrainingClient]:
    """Runs of other ranks and targets, with a B that is not zero."""
    runs = [new_run(service, 20, train_attn=False), new_run(service, 3, train_unembed=False)]
    teach(runs)
    return runs


def new_run(
    service: ServiceClient, rank: int, *, train_attn: bool = True, train_unembed: bool = True
) -> TrainingClient:
    (model,) = service.get_server_capabilities().supported_models
    return service.create_lora_training_client(
        model.model_name or "",
        rank=rank,
        seed=rank,
        train_attn=train_attn,
        train_unembed=train_unembed,
    )


def teach(runs: Sequence[TrainingClient]) -> None:
    for run in runs:
        run.forward_backward(make_data(1, (6,)), "cross_entropy")
    for step in [run.optim_step(AdamParams(learning_rate=1e-1)) for run in runs]:
        step.result(60)


def draw(runs: Sequence[TrainingClient]) -> list[Text]:
    """What the first of these runs answers while the others sample, too."""
    params = SamplingParams(max_tokens=NUM_NEW, temperature=1.0, seed=7, stop=[])
    samplers = [run.save_weights_and_get_sampling_client() for run in runs]
    asked = [
        [sampler.sample(ModelInput.from_ints(prompt), 1, params) for prompt in PROMPTS]
        for sampler in samplers
    ]
    answers, *_ = [[each.result(60).sequences[0] for each in own] for own in asked]
    return [
        ([*prompt, *answer.tokens], [*(answer.logprobs or [])])
        for prompt, answer in zip(PROMPTS, answers, strict=True)
    ]


def datum_of(tokens: list[int]) -> Datum:
    weights = np.ones(len(tokens) - 1, np.float32)
    inputs = {"target_tokens": np.array(tokens[1:]), "weights": weights}
    return Datum(ModelInput.from_ints(tokens[:-1]), inputs)


def test_sampled_logprobs_are_those_of_scoring_and_of_training(
    service: ServiceClient, others: list[TrainingClient]
) -> None:
    run = new_run(service, RANK)
    teach([run])
    texts = draw([run, *others])
    sampler = run.save_weights_and_get_sampling_client()
    data = [datum_of(text) for text, _ in texts]
    scores = [sampler.compute_logprobs(ModelInput.from_ints(text)) for text, _ in texts]
    passes = run.forward(data, "cross_entropy"), run.forward_backward(data, "cross_entropy")
    for index, (_, drawn) in enumerate(texts):
        scored = np.array(scores[index].result(60)[1:], np.float32)
        np.testing.assert_array_equal(np.array(drawn, np.float32), scored[-NUM_NEW:])
        for output in passes:
            trained = output.result(60).loss_fn_outputs[index]["logprobs"].to_numpy()
            np.testing.assert_array_equal(trained, scored)


def seen_by(run: TrainingClient, others: Sequence[TrainingClient]) -> list[object]:
    """What a tenant sees of a train step, of a pass with the new weights, and of a sample."""
    for other in others[:1]:  # the worker is busy meanwhile, so that what follows shares a batch
        other.forward_backward(make_data(1, (6,)), "cross_entropy")
    passes = [
        each.forward_backward(make_data(2, (9, 1)), "cross_entropy") for each in (run, *others)
    ]
    steps = [other.optim_step(AdamParams(learning_rate=1e-2)) for other in others]
    output = passes[0].result(60)
    seen: list[object] = [output.metrics["loss:sum"], grad_norm(run)]
    seen += [one["logprobs"].to_numpy().tolist() for one in output.loss_fn_outputs]
    for each in (*passes, *steps):
        each.result(60)
    return [*seen, draw([run, *others])]


def test_a_tenant_alone_sees_the_bits_it_sees_beside_two_others(
    service: ServiceClient, others: list[TrainingClient], trace: Path
) -> None:
    alone = seen_by(new_run(service, RANK), [])
    assert seen_by(new_run(service, RANK), others) == alone
    steps = [span["args"]["runs"] for span in read_trace(trace) if span["name"] == "train_step"]
    assert max(steps) == 1 + len(others)
