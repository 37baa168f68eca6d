"""The journal that keeps nothing, and what the shell asks of one that is slow."""

import threading
from collections.abc import Callable
from uuid import uuid4

import zmq
from core_bench import SESSION, create_run
from fake_worker import FakeWorker

from weft.client import wire
from weft.client.messages import Hello
from weft.engine.broker.journal import NullJournal, Outcome, Record
from weft.engine.broker.shell import Broker

DEADLINE_S = 20


class SlowJournal:
    """Makes durable what a test allows."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.has_outcome = threading.Event()
        self._wake: Callable[[], None] = lambda: None
        self._number = 0

    def start(self, wake: Callable[[], None]) -> None:
        self._wake = wake

    def append(self, number: int, record: Record) -> None:
        self.records.append(record)
        if isinstance(record, Outcome):
            self.has_outcome.set()

    def persisted(self) -> int:
        return self._number

    def stop(self) -> None:
        self.records.clear()

    def catch_up(self) -> None:
        self._number = len(self.records)
        self._wake()


def test_a_journal_that_keeps_nothing_is_never_behind() -> None:
    journal = NullJournal()
    journal.start(lambda: None)
    assert journal.persisted() == 0
    journal.append(1, Outcome("run", 0, ""))
    assert journal.persisted() == 1
    journal.stop()


def test_a_slow_journal_delays_the_reply_and_wakes_the_broker() -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    journal = SlowJournal()
    name = uuid4().hex
    broker = Broker([f"inproc://{name}"], f"inproc://{name}b", journal=journal, context=context)
    with broker:
        worker = FakeWorker(context, broker.worker_address)
        client = context.socket(zmq.DEALER)
        client.connect(broker.addresses[0])
        client.send(wire.encode(Hello(versions=[1], session_id=SESSION)))
        client.recv()
        client.send(wire.encode_signed(create_run(), []))
        assert journal.has_outcome.wait(DEADLINE_S)
        assert not client.poll(50)
        journal.catch_up()
        assert client.poll(DEADLINE_S * 1000)
        client.close(0)
    worker.close()
    context.term()
    assert journal.records == []
