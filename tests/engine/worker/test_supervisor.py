"""Real processes that die, and what is said and done about it. None of them loads a model."""

import os
import queue
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import wait_until_gone

from weft.client.errors import EngineFailed, WeftError
from weft.engine.restarts import Restarts
from weft.engine.worker import supervisor as supervising
from weft.engine.worker.config import WorkerConfig
from weft.engine.worker.process import Assignment
from weft.engine.worker.supervisor import Supervisor

HANG_GUARD_S = 60.0
KILLED = "the worker process ended with signal 9"


class Told:
    """What the supervisor says, in order."""

    def __init__(self) -> None:
        self.queue: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
        self.ids: list[str] = []

    def next(self) -> tuple[str, str]:
        return self.queue.get(timeout=HANG_GUARD_S)

    def worker_gone(self, worker_id: str, detail: str) -> None:
        assert worker_id == self.ids[-1]
        self.queue.put(("gone", detail))

    def worker_awaited(self, detail: str) -> None:
        self.queue.put(("awaited", detail))

    def no_worker(self, detail: str) -> None:
        self.queue.put(("no worker", detail))

    def ended(self, error: WeftError) -> None:
        self.queue.put((f"end {error.code}", str(error)))


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def supervisor(told: Told, tmp_path: Path) -> Iterator[Supervisor]:
    config = WorkerConfig(model="weft/tiny", state_dir=str(tmp_path))

    def assign() -> Assignment:
        """One that nobody answers."""
        made = Assignment.to_broker(config, f"ipc://{tmp_path}/none", "secret")
        told.ids.append(made.worker_id)
        return made

    made = Supervisor(assign, told, told.ended, Restarts(most=1, window_s=600))
    made.start()
    yield made
    made.stop()
    made.join()
    assert made.pid is not None
    assert wait_until_gone(made.pid)


def kill(supervisor: Supervisor) -> int:
    assert supervisor.pid is not None
    os.kill(supervisor.pid, signal.SIGKILL)
    return supervisor.pid


def test_a_death_before_the_first_worker_was_ready_is_final(
    supervisor: Supervisor, told: Told
) -> None:
    kill(supervisor)
    assert [told.next() for _ in range(2)] == [("gone", KILLED), ("end internal", KILLED)]


def test_a_worker_that_dies_is_started_again_until_it_dies_too_often(
    supervisor: Supervisor, told: Told
) -> None:
    supervisor.ready()
    first = kill(supervisor)
    awaited = f"{KILLED}, and is started again (1 of 1 times)"
    assert [told.next() for _ in range(2)] == [("awaited", awaited), ("gone", KILLED)]
    while supervisor.pid == first:
        assert told.queue.empty()
    kill(supervisor)
    final = f"the worker died 2 times within 600 s, at last because {KILLED}"
    assert [told.next() for _ in range(3)] == [
        ("end no_worker", final),
        ("no worker", final),
        ("gone", KILLED),
    ]
    assert len(set(told.ids)) == 2


def test_a_worker_that_the_broker_gave_up_is_killed(
    supervisor: Supervisor, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervising, "ENDING_S", 0.0)
    supervisor.lost("somebody else")
    supervisor.lost(told.ids[0])
    assert told.next() == ("gone", KILLED)


def test_a_worker_that_is_about_to_end_may_say_why(
    told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervising, "ENDING_S", HANG_GUARD_S)
    config = WorkerConfig(model="/nowhere", state_dir=str(tmp_path))
    made = Assignment.to_broker(config, f"ipc://{tmp_path}/none", "secret")
    told.ids.append(made.worker_id)
    supervisor = Supervisor(lambda: made, told, told.ended)
    supervisor.start()
    supervisor.lost(made.worker_id)

    reason = "no model directory '/nowhere'"
    assert [told.next(), told.next()] == [("gone", reason), ("end not_found", reason)]
    supervisor.stop()
    supervisor.join()


def test_nothing_is_started_after_a_stop(supervisor: Supervisor, told: Told) -> None:
    supervisor.ready()
    pid = supervisor.pid
    supervisor.stop()
    kill(supervisor)
    supervisor.join()
    assert supervisor.pid == pid
    assert told.queue.empty()


def test_a_start_that_fails_counts_as_a_death(
    supervisor: Supervisor, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor.ready()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    kill(supervisor)
    assert [told.next()[0] for _ in range(2)] == ["awaited", "gone"]
    assert [told.next()[0] for _ in range(2)] == ["end no_worker", "no worker"]
    kind, detail = told.next()
    assert kind == "gone"
    assert detail.startswith("the worker process could not be started")


def test_a_first_start_that_fails_is_told_to_the_caller(
    told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = WorkerConfig(model="weft/tiny", state_dir=str(tmp_path))
    assignment = Assignment.to_broker(config, "ipc://nowhere", "secret")
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(EngineFailed, match="could not be started"):
        Supervisor(lambda: assignment, told, told.ended).start()
