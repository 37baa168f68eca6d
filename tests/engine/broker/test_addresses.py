"""Where a broker listens: what is taken, what is free, and what needs to be allowed."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zmq

from weft.client import ServiceClient
from weft.client.errors import BadRequest
from weft.engine.broker.shell import Broker, _is_answered, check_address

DEADLINE_S = 20

Context = zmq.Context[Any]
Start = Callable[..., Broker]


def test_a_stopped_broker_leaves_its_port(tmp_path: Path) -> None:
    with Broker(["tcp://127.0.0.1:*"], f"ipc://{tmp_path}/back") as broker:
        address = broker.addresses[0]
    with Broker([address], f"ipc://{tmp_path}/back") as broker:
        assert broker.addresses == [address]


def test_an_ipc_address_is_not_taken_from_a_live_server(
    start: Start, context: Context, tmp_path: Path
) -> None:
    address = f"ipc://{tmp_path}/front"
    first = start(address)
    with pytest.raises(BadRequest, match="is taken") as caught:
        Broker([address], "inproc://other", context=context)
    assert caught.value.code == "conflict"
    with ServiceClient(base_url=address) as service:
        assert service.get_status().result(DEADLINE_S)
    first.stop()
    assert first.join(DEADLINE_S)
    deadline = time.monotonic() + DEADLINE_S
    while _is_answered(address):  # the messaging thread closes the listener after the broker's end
        assert time.monotonic() < deadline
    assert start(address).addresses == [address]


def test_a_port_that_is_taken_is_named(start: Start, context: Context) -> None:
    taken = start("tcp://127.0.0.1:*").addresses[0]
    with pytest.raises(BadRequest, match="another server listens there") as caught:
        Broker([taken], "inproc://other", context=context)
    assert taken in str(caught.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "*", "192.168.1.5", "example.org", "[::]", "eth0"])
def test_an_address_beyond_this_machine_needs_insecure(host: str) -> None:
    with pytest.raises(BadRequest, match="--insecure"):
        check_address(f"tcp://{host}:5757")
    check_address(f"tcp://{host}:5757", insecure=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1.2.3", "[::1]"])
def test_an_address_of_this_machine_needs_nothing(host: str) -> None:
    check_address(f"tcp://{host}:5757")


@pytest.mark.parametrize("address", ["5757", "http://x:1", "tcp://", "udp://127.0.0.1:1", ""])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(BadRequest, match="is no address"):
        check_address(address)
