"""The loop on a local twin: no key, no network, no GPU."""

from collections.abc import Iterator

import numpy as np
import pytest
import tinker
from loop import datum, train

from weft.engine.testing import LocalServer


@pytest.fixture
def service(tinker_env: LocalServer) -> Iterator[tinker.ServiceClient]:
    with tinker.ServiceClient() as client:
        yield client


def test_answers_get_better(service: tinker.ServiceClient, tinker_server: LocalServer) -> None:
    shares = train(service, tinker_server.model, steps=10, seed=1)
    assert sum(shares[5:]) > sum(shares[:5])


def test_a_seed_fixes_every_number(
    service: tinker.ServiceClient, tinker_server: LocalServer
) -> None:
    first, second = (train(service, tinker_server.model, steps=3, seed=2) for _ in range(2))
    assert first == second


def test_a_prompt_is_not_trained_on() -> None:
    made = datum([1, 2, 3], [4, 5], [-0.5, -0.25], 2.0)
    np.testing.assert_array_equal(made.loss_fn_inputs["advantages"].to_numpy(), [0, 0, 2, 2])


@pytest.mark.usefixtures("tinker_cwd")
def test_a_sampler_finds_its_tokenizer_by_the_name_of_the_model(
    service: tinker.ServiceClient, tinker_server: LocalServer
) -> None:
    tokenizer = (
        service.create_sampling_client(base_model=tinker_server.model).result().get_tokenizer()
    )
    assert tokenizer.decode(tokenizer.encode("12+34=")) == "12+34="
