"""A fake broker in this process, and a client of it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import zmq
from fake_broker import FakeBroker

from weft.client import ServiceClient


@pytest.fixture
def context() -> Iterator["zmq.Context[Any]"]:
    context: zmq.Context[Any] = zmq.Context()
    yield context
    context.term()


@pytest.fixture
def broker(context: "zmq.Context[Any]") -> Iterator[FakeBroker]:
    broker = FakeBroker(context, f"inproc://{uuid4().hex}")
    yield broker
    broker.close()


@pytest.fixture
def ipc_broker(context: "zmq.Context[Any]", tmp_path: Path) -> Iterator[FakeBroker]:
    """One that other contexts and processes reach."""
    broker = FakeBroker(context, f"ipc://{tmp_path}/s")
    yield broker
    broker.close()


@pytest.fixture
def service(broker: FakeBroker, context: "zmq.Context[Any]") -> Iterator[ServiceClient]:
    with ServiceClient(base_url=broker.address, api_key="", context=context) as service:
        yield service
