"""The same engine on a CUDA device, through PyTorch's operations."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hosted_models import save_family
from loss_data import loss_data, soft_data
from tenants import grad_norm, train

from weft.client import ModelInput, SamplingParams
from weft.client.losses import LOSSES
from weft.engine import Engine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_training_on_a_gpu_follows_training_on_a_cpu(model_path: str) -> None:
    losses = []
    for device in ("cpu", "cuda"):
        with (
            Engine(model_path, device=device, dtype="float32", memory_bytes=1 << 30) as engine,
            engine.client() as service,
        ):
            run = service.create_lora_training_client(model_path, rank=7, seed=1)
            losses.append(train(run, 1, 4))
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)  # TF32 is off; other sum orders


def test_a_fork_on_a_gpu_goes_on_as_its_source(model_path: str) -> None:
    with (
        Engine(model_path, device="cuda", memory_bytes=1 << 30) as engine,
        engine.client() as service,
    ):
        run = service.create_lora_training_client(model_path, rank=7, seed=1)
        train(run, 1, 2)
        fork, twin = run.fork(), run.fork()
        train(run, 30, 1)
        assert train(fork, 5, 2) == train(twin, 5, 2)  # alone in their batches, in one order


def test_a_gpu_samples_in_bfloat16(model_path: str) -> None:
    with (
        Engine(model_path, device="cuda", memory_bytes=1 << 30) as engine,
        engine.client() as service,
    ):
        run = service.create_lora_training_client(model_path, rank=7, seed=1)
        train(run, 1, 2)
        sampler = run.save_weights_and_get_sampling_client()
        params = SamplingParams(max_tokens=8, stop=[])
        response = sampler.sample(ModelInput.from_ints([1, 2, 3]), 3, params).result(60)
    assert [len(sequence.tokens) for sequence in response.sequences] == [8, 8, 8]


@pytest.mark.parametrize("kind", ["gpt_oss", "jamba"])  # packed, and one sequence at a time
def test_a_model_of_transformers_trains_on_a_gpu_as_on_a_cpu(tmp_path: Path, kind: str) -> None:
    path, losses = str(save_family(tmp_path, kind)), []
    for device in ("cpu", "cuda"):
        with (
            Engine(path, device=device, dtype="float32", memory_bytes=1 << 30) as engine,
            engine.client() as service,
        ):
            run = service.create_lora_training_client(path, rank=7, seed=1, train_mlp=False)
            losses.append(train(run, 1, 4))
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)


def test_every_loss_on_a_gpu_follows_that_on_a_cpu(model_path: str) -> None:
    found: list[list[float]] = []
    for device in ("cpu", "cuda"):
        with (
            Engine(model_path, device=device, dtype="float32", memory_bytes=1 << 30) as engine,
            engine.client() as service,
        ):
            run = service.create_lora_training_client(model_path, rank=7, seed=1)
            calls = [(loss_fn, loss_data(1, loss_fn)) for loss_fn in LOSSES]
            found.append([])
            for loss_fn, data in [*calls, ("cross_entropy", soft_data(2, 5))]:
                output = run.forward_backward(data, loss_fn).result(60)
                found[-1] += [output.metrics["loss:sum"], grad_norm(run)]
    np.testing.assert_allclose(found[1], found[0], rtol=1e-3)
