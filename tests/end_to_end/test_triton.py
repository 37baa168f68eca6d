"""The whole engine by the Triton kernels: on a CUDA device, or in the interpreter on a CPU."""

from collections.abc import Iterator

import interpreter
import numpy as np
import pytest
from loss_data import policy_data, soft_data
from random_models import save_random_model
from tenants import VOCAB_SIZE, grad_norm, make_data

from weft.client import AdamParams, ModelInput, SamplingParams, ServiceClient
from weft.engine import Engine

# float32 sums in another order; seen up to 2e-6 in losses and gradient norms
TOLERANCE = 1e-5
LENGTHS = (8, 1, 6)


def started(model_path: str, kernels: str, dtype: str = "float32") -> Engine:
    device = interpreter.kernel_device().type
    return Engine(model_path, device=device, kernels=kernels, dtype=dtype, memory_bytes=1 << 30)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model")
    save_random_model(path, vocab_size=VOCAB_SIZE, num_layers=1)
    return str(path)


@pytest.fixture(scope="module")
def services(model_path: str) -> Iterator[list[ServiceClient]]:
    with (
        started(model_path, "triton") as ours,
        started(model_path, "torch") as theirs,
        ours.client() as one,
        theirs.client() as other,
    ):
        yield [one, other]


def test_training_follows_that_by_torch(services: list[ServiceClient], model_path: str) -> None:
    seen = []
    for service in services:
        run = service.create_lora_training_client(model_path, rank=7, seed=1)
        passed = run.forward_backward(make_data(1, LENGTHS), "cross_entropy")
        stepped = run.optim_step(AdamParams(learning_rate=1e-2))
        again = run.forward(make_data(1, LENGTHS), "cross_entropy").result(60)
        seen.append(
            [
                passed.result(60).metrics["loss:sum"],
                (stepped.result(60).metrics or {})["unclipped_grad_l2:mean"],
                again.metrics["loss:sum"],
            ]
        )
    np.testing.assert_allclose(seen[0], seen[1], rtol=TOLERANCE)


def test_tenants_of_any_rank_and_target_share_a_batch(
    services: list[ServiceClient], model_path: str
) -> None:
    seen = []
    for service in services:
        runs = [
            service.create_lora_training_client(model_path, rank=1, seed=1, train_mlp=False),
            service.create_lora_training_client(model_path, rank=20, seed=2, train_unembed=False),
            service.create_lora_training_client(model_path, rank=3, seed=3, train_attn=False),
        ]
        passes = [run.forward_backward(make_data(7, LENGTHS), "cross_entropy") for run in runs]
        steps = [run.optim_step(AdamParams(learning_rate=1e-2)) for run in runs]
        seen.append(
            [each.result(60).metrics["loss:sum"] for each in passes]
            + [(each.result(60).metrics or {})["unclipped_grad_l2:mean"] for each in steps]
        )
    np.testing.assert_allclose(seen[0], seen[1], rtol=TOLERANCE)


@pytest.mark.parametrize("loss_fn", ["gspo", "soft"])
def test_losses_follow_those_by_torch(
    services: list[ServiceClient], model_path: str, loss_fn: str
) -> None:
    seen = []
    for service in services:
        run = service.create_lora_training_client(model_path, rank=7, seed=1)
        is_soft = loss_fn == "soft"
        data = soft_data(2, 5, LENGTHS) if is_soft else policy_data(1, loss_fn, LENGTHS)
        name = "cross_entropy" if is_soft else loss_fn
        output = run.forward_backward(data, name).result(60)
        seen.append([output.metrics["loss:sum"], grad_norm(run)])
    np.testing.assert_allclose(seen[0], seen[1], rtol=TOLERANCE)


def test_samples_are_those_by_torch(services: list[ServiceClient], model_path: str) -> None:
    seen = []
    for service in services:
        run = service.create_lora_training_client(model_path, rank=7, seed=1)
        run.forward_backward(make_data(1, LENGTHS), "cross_entropy")
        run.optim_step(AdamParams(learning_rate=1e-2)).result(60)
        sampler = run.save_weights_and_get_sampling_client()
        params = SamplingParams(max_tokens=3, seed=5, stop=[])
        response = sampler.sample(ModelInput.from_ints([1, 2, 3]), 2, params).result(60)
        seen.append(response.sequences)
    for ours, theirs in zip(*seen, strict=True):
        assert list(ours.tokens) == list(theirs.tokens)
        np.testing.assert_allclose(ours.logprobs, theirs.logprobs, rtol=1e-4, atol=TOLERANCE)


def test_bfloat16_is_as_close_to_float32_as_by_torch(model_path: str) -> None:
    found = {}
    for kernels, dtype in (("torch", "float32"), ("torch", "bfloat16"), ("triton", "bfloat16")):
        with started(model_path, kernels, dtype) as engine, engine.client() as service:
            run = service.create_lora_training_client(model_path, rank=7, seed=1)
            run.forward_backward(make_data(1, LENGTHS), "cross_entropy")
            run.optim_step(AdamParams(learning_rate=1e-2)).result(60)
            output = run.forward(make_data(2, LENGTHS), "cross_entropy").result(60)
            pieces = [each["logprobs"].to_numpy() for each in output.loss_fn_outputs]
            found[kernels, dtype] = np.concatenate(pieces)
    exact = found["torch", "float32"]
    ours, theirs = (
        np.linalg.norm(found[kernels, "bfloat16"] - exact) for kernels in ("triton", "torch")
    )
    assert 0 < ours <= 2 * theirs
