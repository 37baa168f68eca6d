"""A broker that is away, is restarted, or loses its worker under a gateway."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from gateways import Caller, Loop, Stand

from weft.client.limits import LIMITS, Limit
from weft.engine.gateway import line
from weft.engine.gateway.config import GatewayConfig
from weft.engine.gateway.server import GatewayServer

Build = Callable[..., Stand]
DEADLINE_S = 20.0


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence is noticed at once."""
    for name, seconds in {"connect_s": 0.3, "heartbeat_s": 0.05, "liveness_s": 0.3}.items():
        monkeypatch.setitem(LIMITS, name, Limit(seconds, "s", LIMITS[name].code, ""))
    monkeypatch.setattr(line, "_PATIENCE_S", 0.3)


def test_a_gateway_without_a_broker_says_so_and_serves_when_there_is_one(
    build: Build, tmp_path: Path
) -> None:
    loop = Loop()
    config = GatewayConfig(broker=f"ipc://{tmp_path}/front", listen="127.0.0.1:0")
    server = GatewayServer(config)
    loop.run(server.start())
    caller = Caller(server.url, "tml-any")
    try:
        answer = caller.post("create_session", {"tags": [], "sdk_version": "1"})
        assert (answer.status, answer.json["code"]) == (503, "disconnected")
        assert (answer.headers["x-should-retry"], answer.headers["retry-after"]) == ("true", "1")
        assert caller.call("GET", "/healthz").status == 200
        assert caller.call("GET", "/readyz").status == 503
        build()  # its broker takes the address
        assert caller.session()
        assert caller.call("GET", "/readyz").status == 200
    finally:
        loop.run(server.stop())
        loop.close()


def test_who_is_connected_is_told_when_the_broker_is_away_and_goes_on_afterwards(
    build: Build,
) -> None:
    stand = build()
    caller = stand.caller()
    run_id = caller.run()
    stand.stop_broker()
    deadline = time.monotonic() + DEADLINE_S
    while caller.get("training_runs").status != 503:
        assert time.monotonic() < deadline
    assert caller.post("get_info", {"model_id": run_id}).json["code"] == "disconnected"
    held = caller.step(run_id, 1)
    poll = caller.poll(held.json["request_id"])
    assert (poll.status, poll.json["queue_state"]) == (408, "paused_capacity")
    assert "ipc:" not in poll.json["queue_state_reason"]  # where the broker is concerns nobody
    stand.start_broker()
    found = caller.result(held).json
    assert (found["category"], "(not_found)" in found["error"]) == ("user", True)
    assert caller.result(caller.step(caller.run(), 1)).json["metrics"]["step:max"] == 1


def test_a_worker_that_dies_fails_the_steps_it_had_and_samples_go_on_with_the_next(
    build: Build,
) -> None:
    stand = build(hold=True)
    caller = stand.caller()
    stand.worker.hold = False
    run_id, sampler_id = caller.run(), caller.sampler()
    stand.worker.hold = True
    steps = [caller.step(run_id, 1), caller.step(run_id, 2)]
    sample = caller.sample(sampler_id, 0)
    deadline = time.monotonic() + DEADLINE_S
    while len(stand.worker.held) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.001)  # dispatches have no event here
    stand.broker.worker_gone("worker-0", "killed")
    failures = [caller.result(answer).json for answer in steps]
    assert {failure["category"] for failure in failures} == {"server"}
    assert all("(run_lost)" in failure["error"] for failure in failures)
    stand.add_worker()
    assert caller.result(sample).headers["Content-Type"] == "application/x-protobuf"


def test_who_comes_while_a_worker_is_being_started_again_is_to_come_again(build: Build) -> None:
    stand = build()
    caller = stand.caller()
    sampler_id = caller.sampler()
    stand.broker.worker_gone("worker-0", "killed")
    stand.restart_gateway()
    refused = caller.sample(sampler_id, 0)
    assert (refused.status, refused.json["code"]) == (429, "busy")
    stand.add_worker()
    deadline = time.monotonic() + DEADLINE_S
    while (posted := caller.sample(sampler_id, 0)).status == 429:
        assert time.monotonic() < deadline
    assert caller.result(posted).headers["Content-Type"] == "application/x-protobuf"


def test_a_session_that_the_broker_forgot_is_gone_for_its_heartbeats(build: Build) -> None:
    stand = build()
    caller = stand.caller()
    session_id = caller.session()
    stand.restart_gateway()
    stand.stop_broker()
    stand.start_broker()
    heartbeat = {"session_id": session_id}
    deadline = time.monotonic() + DEADLINE_S
    while (answer := caller.post("session_heartbeat", heartbeat)).status == 503:
        assert time.monotonic() < deadline
    assert (answer.status, answer.json["code"]) == (410, "session_expired")
