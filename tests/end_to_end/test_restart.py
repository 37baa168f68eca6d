"""A worker that is killed comes back: what is lost, what stays, and what waits says so."""

import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from tenants import make_data, train

from weft.client import EngineFailed, ModelInput, SamplingParams, ServiceClient, WeftError
from weft.engine import Engine
from weft.engine.restarts import Restarts
from weft.engine.worker import supervisor

WAIT_S = 60.0
PROMPT = ModelInput.from_ints([1, 2, 3])
PARAMS = SamplingParams(max_tokens=4, temperature=0)


@pytest.fixture
def isolated(model_path: str) -> Iterator[Engine]:
    with Engine(model_path, isolate=True, memory_bytes=1 << 30) as engine:
        yield engine


def kill_worker(engine: Engine) -> int:
    assert engine.worker_pid is not None
    os.kill(engine.worker_pid, signal.SIGKILL)
    return engine.worker_pid


def code_of(call: Callable[[], object]) -> str:
    try:
        call()
    except WeftError as error:
        return error.code
    return ""


def test_a_killed_worker_is_started_again_and_serves_what_was_saved(
    isolated: Engine, model_path: str
) -> None:
    with isolated.client() as service:
        run = service.create_lora_training_client(model_path, rank=4, seed=2)
        train(run, 1, 2)
        path = run.save_state("kept").result(WAIT_S).path
        expected = train(run, 5, 2)
        sampler = service.create_sampling_client(base_model=model_path)
        before = sampler.sample(PROMPT, 1, PARAMS).result(WAIT_S)
        ephemeral = run.save_weights_and_get_sampling_client()
        first = kill_worker(isolated)
        lost = partial(run.forward_backward(make_data(1), "cross_entropy").result, WAIT_S)
        assert code_of(lost) == "run_lost"

        waiting = sampler.sample(PROMPT, 1, PARAMS)
        reason = waiting.explain()
        assert reason is not None
        assert reason.code in ("restarting", "loading", "dispatched", "opening")
        assert "ended with signal 9, and is started again (1 of 5 times)" in reason.detail
        assert waiting.result(WAIT_S).sequences[0].tokens == before.sequences[0].tokens
        assert code_of(lambda: ephemeral.sample(PROMPT, 1, PARAMS).result(WAIT_S)) == "run_lost"
        resumed = service.create_training_client_from_state_with_optimizer(path)
        # the same state and the same data; batches may be cut in another order
        assert train(resumed, 5, 2) == pytest.approx(expected, rel=1e-5)
    assert isolated.is_healthy
    assert isolated.worker_pid != first


def test_an_engine_whose_worker_dies_too_often_says_so(
    monkeypatch: pytest.MonkeyPatch, model_path: str
) -> None:
    monkeypatch.setattr(supervisor, "Restarts", lambda: Restarts(most=0))
    with (
        Engine(model_path, isolate=True, memory_bytes=1 << 30) as engine,
        engine.client() as service,
    ):
        kill_worker(engine)
        with pytest.raises(EngineFailed, match=r"died 1 times.*signal 9") as caught:
            _create_until_it_fails(service, model_path)
        assert caught.value.code == "no_worker"
        assert not engine.is_healthy
        assert str(engine.failure) == str(caught.value)
        assert service.get_status().result(WAIT_S)["state"] == "failed"


def _create_until_it_fails(service: ServiceClient, model: str) -> None:
    """Runs, until the server has noticed: what it was given before that is lost."""
    while True:
        try:
            service.create_lora_training_client(model, rank=4)
        except EngineFailed as error:
            if error.code != "run_lost":
                raise


def test_loading_is_told_while_it_lasts(model_path: str, tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    with Engine(
        model_path,
        isolate=True,
        memory_bytes=1 << 30,
        on_progress=lambda phase, fraction: told.append((phase, fraction)),
    ):
        pass
    phases = [phase for phase, _ in told]
    assert list(dict.fromkeys(phases)) == [
        "starting",
        "reading weights",
        "preparing",
        "warming",
    ]
    fractions = [fraction for phase, fraction in told if phase == "reading weights"]
    assert fractions[0] == 0
    assert fractions == sorted(fractions)
