"""Starting, stopping and dying: nothing hangs and nothing is left running."""

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from processes import Served, serving, wait_until_gone
from tenants import make_data, train

from weft.client import AdamParams, Disconnected, EngineFailed, ServiceClient, WeftError
from weft.engine import Engine
from weft.engine.worker.launch import WorkerProcess


def test_a_terminated_server_finishes_or_refuses_and_leaves_nothing(
    model_path: str, tmp_path: Path
) -> None:
    with (
        serving(model_path, tmp_path, "--memory-bytes", "1000000000") as served,
        ServiceClient(base_url=served.address) as service,
    ):
        run = service.create_lora_training_client(model_path, rank=8)
        train(run, 1, 1)
        workers = served.children()
        pending = [run.forward_backward(make_data(seed), "cross_entropy") for seed in range(40)]
        status, _, err = served.end(signal.SIGTERM)
        assert status == 0, err
        assert workers
        assert all(wait_until_gone(pid) for pid in workers)
        outcomes = [_outcome(future) for future in pending]
    assert set(outcomes) <= {"done", "stopping", "disconnected"}
    finished = outcomes.count("done")
    assert outcomes == ["done"] * finished + outcomes[finished:]


def _outcome(future: object) -> str:
    try:
        future.result(1)  # type: ignore[attr-defined]
    except WeftError as error:
        return "disconnected" if error.code == "timeout" else error.code
    return "done"


def test_the_worker_goes_when_its_parent_is_killed(model_path: str, tmp_path: Path) -> None:
    with serving(model_path, tmp_path, "--memory-bytes", "1000000000") as served:
        workers = served.children()
        served.process.kill()
        served.process.communicate()
        assert workers
        assert all(wait_until_gone(pid) for pid in workers)


def test_a_killed_worker_answers_run_lost(model_path: str) -> None:
    with (
        Engine(model_path, isolate=True, memory_bytes=1 << 30) as engine,
        engine.client() as service,
    ):
        run = service.create_lora_training_client(model_path, rank=4)
        train(run, 1, 1)
        assert engine.worker_pid is not None
        os.kill(engine.worker_pid, signal.SIGKILL)
        with pytest.raises(EngineFailed) as caught:
            run.forward_backward(make_data(1), "cross_entropy").result(60)
        assert caught.value.code == "run_lost"


def test_saved_states_survive_a_restart_of_the_server(model_path: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"memory_bytes": 1 << 30, "state_dir": str(tmp_path)}
    with Engine(model_path, **settings) as engine, engine.client() as service:
        run = service.create_lora_training_client(model_path, rank=4, seed=2)
        train(run, 1, 2)
        path = run.save_state("kept").result(60).path
        expected = train(run, 5, 2)
    with Engine(model_path, **settings) as engine, engine.client() as service:
        resumed = service.create_training_client_from_state_with_optimizer(path)
        # the same state and the same data; batches may be cut in another order
        assert train(resumed, 5, 2) == pytest.approx(expected, rel=1e-5)


def test_a_closed_engine_leaves_no_thread_and_no_process(model_path: str) -> None:
    before = set(threading.enumerate())
    engine = Engine(model_path, memory_bytes=1 << 30)
    with engine.client() as service:
        run = service.create_lora_training_client(model_path, rank=4)
        run.forward_backward(make_data(1), "cross_entropy").result(60)
        run.optim_step(AdamParams()).result(60)
    engine.close()
    left = [t.name for t in threading.enumerate() if t not in before and t.name.startswith("weft")]
    assert left == []


@pytest.mark.parametrize("isolate", [False, True])
def test_closing_an_engine_answers_what_is_on_its_way(
    model_path: str, isolate: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The client object is gone, its run is not: the connection is the engine's to close."""
    engine = Engine(model_path, isolate=isolate, memory_bytes=1 << 30)
    run = engine.client().create_lora_training_client(model_path, rank=4)
    pending = [run.forward_backward(make_data(seed), "cross_entropy") for seed in range(40)]
    engine.close()
    assert {_outcome(future) for future in pending} <= {"done", "disconnected"}
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
    assert not Path(engine._temporary.name).exists()
    with pytest.raises(Disconnected, match="closed"):
        engine.client()


def test_a_worker_that_dies_while_it_loads_is_reported_at_once(
    model_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = WorkerProcess.__init__

    def start(self: WorkerProcess, *arguments: Any) -> None:
        original(self, *arguments)
        os.kill(self.pid, signal.SIGKILL)

    monkeypatch.setattr(WorkerProcess, "__init__", start)
    with pytest.raises(EngineFailed, match="ended with signal 9"):
        Engine(model_path, isolate=True, memory_bytes=1 << 30)


def test_a_server_terminated_while_it_loads_goes_at_once(model_path: str, tmp_path: Path) -> None:
    served = Served(model_path, tmp_path, "--memory-bytes", "1000000000")
    while not (workers := served.children()):
        assert served.process.poll() is None
    status, out, err = served.end(signal.SIGTERM)
    assert (status, out) == (0, ""), err
    assert all(wait_until_gone(pid) for pid in workers)
