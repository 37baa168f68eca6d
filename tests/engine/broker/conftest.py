"""Brokers in threads of their own, stopped after the test."""

from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
import zmq

from weft.engine.broker.shell import Broker

DEADLINE_S = 20

Context = zmq.Context[Any]
Start = Callable[..., Broker]


@pytest.fixture
def context() -> Iterator[Context]:
    context: Context = zmq.Context()
    yield context
    context.term()


@pytest.fixture
def start(context: Context) -> Iterator[Start]:
    brokers = []

    def begin(*listen: str, **settings: Any) -> Broker:
        name = uuid4().hex
        given: dict[str, Any] = {"worker_address": f"inproc://{name}-back", "context": context}
        broker = Broker(listen or (f"inproc://{name}",), **given | settings)
        broker.start()
        brokers.append(broker)
        return broker

    yield begin
    for broker in brokers:
        broker.stop()
        assert broker.join(DEADLINE_S)
