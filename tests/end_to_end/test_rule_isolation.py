"""Rule 3: nobody's numbers depend on anybody else's values, settings or presence."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tenants import make_data, train

from weft.client import AdamParams, BadRequest, ServiceClient, TrainingClient
from weft.engine import Engine

RANKS = (1, 4, 7, 16, 64)
# The order of float32 sums differs with the batch.
ROUNDING = 1e-4


def new_run(service: ServiceClient, model: str, rank: int) -> TrainingClient:
    return service.create_lora_training_client(model, rank=rank, seed=rank)


def together(engine: Engine, model: str, ranks: tuple[int, ...] = RANKS) -> list[list[float]]:
    """One thread and one session a tenant, all starting at once."""
    barrier = threading.Barrier(len(ranks))

    def tenant(place: int) -> list[float]:
        with engine.client() as service:
            run = new_run(service, model, ranks[place])
            barrier.wait(60)
            return train(run, 10 * place, 3)

    with ThreadPoolExecutor(len(ranks)) as pool:
        return list(pool.map(tenant, range(len(ranks))))


def test_interleaved_tenants_equal_each_alone_within_rounding(
    engine: Engine, model_path: str
) -> None:
    with engine.client() as service:
        alone = [
            train(new_run(service, model_path, rank), 10 * place, 3)
            for place, rank in enumerate(RANKS)
        ]
    np.testing.assert_allclose(together(engine, model_path), alone, rtol=ROUNDING)


def test_interleaved_tenants_equal_each_alone_to_the_bit_when_deterministic(
    exact_engine: Engine, model_path: str
) -> None:
    with exact_engine.client() as service:
        alone = [
            train(new_run(service, model_path, rank), 10 * place, 3)
            for place, rank in enumerate(RANKS)
        ]
    assert together(exact_engine, model_path) == alone


def test_weight_decay_of_a_neighbour_touches_nobody_else(
    exact_service: ServiceClient, model_path: str
) -> None:
    decaying, other = (new_run(exact_service, model_path, rank) for rank in (8, 9))
    before = other.forward(make_data(1), "cross_entropy").result(60)
    decaying.forward_backward(make_data(2), "cross_entropy").result(60)
    decaying.optim_step(AdamParams(learning_rate=0.1, weight_decay=0.9)).result(60)
    after = other.forward(make_data(1), "cross_entropy").result(60)
    assert after.metrics["loss:sum"] == before.metrics["loss:sum"]


def test_a_learning_rate_that_ruins_one_run_leaves_its_neighbours_alone(
    service: ServiceClient, model_path: str
) -> None:
    ruined, other = (new_run(service, model_path, rank) for rank in (8, 9))
    expected = train(new_run(service, model_path, 9), 5, 2)
    ruined.forward_backward(make_data(1), "cross_entropy").result(60)
    ruined.optim_step(AdamParams(learning_rate=1e30)).result(60)
    pending = ruined.forward_backward(make_data(2), "cross_entropy")
    np.testing.assert_allclose(train(other, 5, 2), expected, rtol=ROUNDING)
    with pytest.raises(BadRequest) as caught:
        pending.result(60)
    assert caught.value.code == "non_finite"


def test_a_run_with_ruined_weights_takes_a_saved_state(
    service: ServiceClient, model_path: str
) -> None:
    run = new_run(service, model_path, 8)
    saved = run.save_state("good").result(60)
    before = run.forward(make_data(2), "cross_entropy").result(60)
    run.forward_backward(make_data(1), "cross_entropy").result(60)
    run.optim_step(AdamParams(learning_rate=1e30)).result(60)
    with pytest.raises(BadRequest, match="load a saved state"):
        run.forward(make_data(2), "cross_entropy").result(60)
    run.load_state(saved.path).result(60)
    after = run.forward(make_data(2), "cross_entropy").result(60)
    assert after.metrics["loss:sum"] == pytest.approx(before.metrics["loss:sum"], rel=ROUNDING)
