"""One small random model, and engines that serve it through the real client."""

from collections.abc import Iterator

import pytest
from random_models import save_random_model
from tenants import VOCAB_SIZE

from weft.client import ServiceClient
from weft.engine import Engine


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
