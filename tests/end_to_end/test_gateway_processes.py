"""What `weft serve --http` runs: engine, worker and gateway, and what happens when one is killed."""

import os
import signal
import time
from collections.abc import Iterator

import numpy as np
import pytest
from gateways import Caller, pass_body
from processes import HANG_GUARD_S

from weft.client.errors import BadRequest
from weft.engine.serving import Server


@pytest.fixture(scope="module")
def server(model_path: str) -> Iterator[Server]:
    with Server(model_path, http="127.0.0.1:0", memory_bytes=1 << 30) as made:
        yield made


@pytest.fixture
def caller(server: Server) -> Caller:
    return Caller(server.url, "tml-any")


def make_run(caller: Caller, model: str) -> str:
    fields = {"session_id": caller.session(), "model_seq_id": 0, "base_model": model}
    posted = caller.post("create_model", {**fields, "lora_config": {"rank": 4, "seed": 1}})
    return str(caller.result(posted).json["model_id"])


def test_its_own_address_of_the_broker_is_not_among_those_for_clients(server: Server) -> None:
    assert server.addresses == []
    assert server.is_healthy
    assert server.failure is None


def test_a_worker_killed_under_a_pass_fails_it_and_what_follows_and_nothing_hangs(
    server: Server, caller: Caller, model_path: str
) -> None:
    run_id = make_run(caller, model_path)
    tokens = tuple(np.random.default_rng(0).integers(0, 97, 100).tolist())
    posted = [
        caller.post("forward_backward", pass_body(run_id, seq, tokens)) for seq in range(1, 40)
    ]
    posted.append(caller.step(run_id, 40))
    pid = server.engine.worker_pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    last = caller.result(posted[-1]).json
    assert last["category"] == "server"
    assert "(run_lost)" in last["error"]
    answers = [caller.result(answer) for answer in posted]
    failed = [answer.json for answer in answers if answer.body.startswith(b"{")]
    assert all(failure["category"] == "server" for failure in failed)
    fresh = make_run(caller, model_path)
    passed = caller.result(caller.post("forward_backward", pass_body(fresh, 1)))
    assert passed.headers["Content-Type"] == "application/x-protobuf"


def test_a_gateway_that_is_killed_comes_back_and_the_run_goes_on(
    server: Server, caller: Caller, model_path: str
) -> None:
    run_id = make_run(caller, model_path)
    caller.result(caller.post("forward_backward", pass_body(run_id, 1)))
    assert server.gateway_pid is not None
    os.kill(server.gateway_pid, signal.SIGKILL)
    deadline = time.monotonic() + HANG_GUARD_S
    while True:
        try:
            stepped = caller.step(run_id, 2)
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.02)  # nobody listens yet
    assert caller.result(stepped).json["metrics"]["step:max"] == 1
    assert server.is_healthy


def test_nobody_from_outside_comes_in_without_a_key(model_path: str) -> None:
    with pytest.raises(BadRequest, match="not encrypted"):
        Server(model_path, http="0.0.0.0:0")
