"""One small random model, and engines that serve it through the real client."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from random_models import save_random_model
from weft.client import AdamParams, Datum, ModelInput, ServiceClient, TrainingClient
from weft.engine import Engine


VOCAB_SIZE = 97


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model")
    save_random_model(path, vocab_size=VOCAB_SIZE)
    return str(path)


@pytest.fixture(scope="session")
def engine(model_path: str) -> Iterator[Engine]:
    with Engine(model_path, memory_bytes=1 << 30) as running:
        yield running


@pytest.fixture(scope="session")
def exact_engine(model_path: str) -> Iterator[Engine]:
    """The same in deterministic mode, with small units so that commands have several."""
    with Engine(model_path, memory_bytes=1 << 30, is_deterministic=True, unit_tokens=64) as running:
        yield running


@pytest.fixture
def service(engine: Engine) -> Iterator[ServiceClient]:
    with engine.client() as client:
        yield client


@pytest.fixture
def exact_service(exact_engine: Engine) -> Iterator[ServiceClient]:
    with exact_engine.client() as client:
        yield client


Data = Callable[..., list[Datum]]


@pytest.fixture(scope="session")
def data() -> Data:
    """data(seed, lengths): next-token datums of random tokens."""

    def make(seed: int, lengths: tuple[int, ...] = (12, 30, 7), weight: float = 1.0) -> list[Datum]:
        generator = np.random.default_rng(seed)
        made = []
        for length in lengths:
            tokens = generator.integers(0, VOCAB_SIZE, length + 1)
            made.append(
                Datum(
                    ModelInput.from_ints(tokens[:-1].tolist()),
                    {
                        "target_tokens": tokens[1:],
                        "weights": np.full(length, weight, np.float32),
                    },
                )
            )
        return made

    return make


Loop = Callable[[TrainingClient, int, int], list[float]]


@pytest.fixture(scope="session")
def train(data: Data) -> Loop:
    """train(run, seed, steps): a short loop; returns losses and gradient norms in turn."""

    def loop(run: TrainingClient, seed: int, steps: int) -> list[float]:
        seen = []
        for number in range(steps):
            passed = run.forward_backward(data(seed + number), "cross_entropy")
            stepped = run.optim_step(AdamParams(learning_rate=1e-2))
            seen.append(passed.result(60).metrics["loss:sum"])
            seen.append((stepped.result(60).metrics or {})["unclipped_grad_l2:mean"])
        return seen

    return loop
