"""A gateway in a process of its own: it ends with its parent, and comes back when it dies."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from gateways import Caller, Stand, standing
from processes import HANG_GUARD_S, wait_until_gone

from weft.client.errors import WeftError
from weft.engine.gateway.config import START_FAILED, GatewayConfig
from weft.engine.gateway.launch import GatewayProcess
from weft.engine.gateway.process import MAX_FILES
from weft.engine.restarts import Restarts

KEY = "tml-never-shown"


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with standing(tmp_path_factory.mktemp("stand")) as made:
        yield made


@pytest.fixture(scope="module")
def process(stand: Stand) -> Iterator[GatewayProcess]:
    config = GatewayConfig(broker=stand.address, listen="127.0.0.1:0", api_key=KEY, poll_s=0.5)
    made = GatewayProcess(config)
    yield made
    made.close()
    assert wait_until_gone(made.pid)


@pytest.fixture
def caller(process: GatewayProcess) -> Caller:
    return Caller(process.url, "tml-any")


def spawned(line: str, *options: str) -> "subprocess.Popen[str]":
    """The process as its parent starts it."""
    command = [sys.executable, "-P", *(options or ("-m", "weft.engine.gateway.process"))]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()
    return process


def test_a_gateway_that_is_killed_comes_back_at_its_address_and_sessions_go_on(
    process: GatewayProcess, caller: Caller
) -> None:
    run_id = caller.run()
    caller.result(caller.step(run_id, 1))
    pid = process.pid
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + HANG_GUARD_S
    while True:
        try:
            stepped = caller.step(run_id, 2)
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.02)  # nobody listens yet
    assert caller.result(stepped).json["metrics"]["step:max"] == 2
    assert process.pid != pid
    assert process.failure is None


def test_the_terminals_signals_are_for_the_parent(process: GatewayProcess, caller: Caller) -> None:
    pid = process.pid
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(pid, number)
    assert caller.call("GET", "/healthz").status == 200
    assert process.pid == pid


def test_nobody_can_read_its_key_from_outside(process: GatewayProcess) -> None:
    for name in ("cmdline", "environ"):
        assert KEY.encode() not in Path(f"/proc/{process.pid}/{name}").read_bytes()


def test_it_ends_with_its_parent(stand: Stand) -> None:
    code = (
        "import os, sys\n"
        "from weft.engine.gateway.config import GatewayConfig\n"
        "from weft.engine.gateway.launch import GatewayProcess\n"
        "made = GatewayProcess(GatewayConfig(broker=sys.argv[1], listen='127.0.0.1:0'))\n"
        "print(made.pid, flush=True)\n"
        "os._exit(1)\n"
    )
    command = [sys.executable, "-P", "-c", code, stand.address]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=HANG_GUARD_S, check=False)
    assert wait_until_gone(int(ran.stdout))


def test_an_address_that_is_taken_is_an_error_and_no_restart(stand: Stand) -> None:
    taken = stand.url.removeprefix("http://")
    with pytest.raises(WeftError, match="cannot listen") as caught:
        GatewayProcess(GatewayConfig(broker=stand.address, listen=taken))
    assert caught.value.code == "conflict"


def test_settings_that_cannot_be_are_told_in_a_line(stand: Stand) -> None:
    config = GatewayConfig(
        broker=stand.address, listen="127.0.0.1:0", tls_cert="/no/cert", tls_key="/no/key"
    )
    process = spawned(config.to_line("text", "warning"))
    out, err = process.communicate(timeout=HANG_GUARD_S)
    assert process.returncode == START_FAILED
    assert json.loads(out)["code"] == "bad_request"
    assert "/no/cert" in json.loads(out)["detail"]
    assert err == ""


def test_one_that_dies_too_often_is_given_up_with_the_reason(stand: Stand) -> None:
    process = GatewayProcess(GatewayConfig(broker=stand.address, listen="127.0.0.1:0"))
    process._restarts = Restarts("the gateway", most=0)
    try:
        os.kill(process.pid, signal.SIGKILL)
        deadline = time.monotonic() + HANG_GUARD_S
        while process.failure is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)  # its watcher tells nobody
        assert "the gateway" in str(process.failure)
    finally:
        process.close()
        process.close()


def test_a_port_is_taken_again_although_old_connections_linger(stand: Stand) -> None:
    """As after a kill: connections of the one before are still in TIME_WAIT."""
    host, port = stand.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        assert connection.recv(1)
        stand.restart_gateway()
    assert stand.caller().call("GET", "/healthz").status == 200


def test_it_may_open_as_many_files_as_the_system_lets_it(stand: Stand) -> None:
    config = GatewayConfig(broker=stand.address, listen="127.0.0.1:0")
    code = (
        "import resource, runpy\n"
        "_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))\n"
        "runpy.run_module('weft.engine.gateway.process', run_name='__main__')\n"
    )
    process = spawned(config.to_line("text", "warning"), "-c", code)
    assert process.stdout is not None
    process.stdout.readline()
    limits = Path(f"/proc/{process.pid}/limits").read_text(encoding="ascii")
    process.communicate(timeout=HANG_GUARD_S)
    soft, hard = limits.split("Max open files")[1].split()[:2]
    assert int(soft) == min(MAX_FILES, int(hard))
