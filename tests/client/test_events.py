"""Events: in order, bounded, and over whenever the stream or the connection is."""

import gc
import threading
from pathlib import Path
from typing import Any

import pytest
import zmq
from fake_broker import DEADLINE_S, FakeBroker, failure

from weft.client import Busy, Disconnected, ServiceClient, Timeout
from weft.client import events as events_module
from weft.client.events import EventStream, ServerEvent
from weft.client.limits import LIMITS, Limit
from weft.client.messages import Event


def make() -> EventStream:
    return EventStream(lambda stream: None)


def event(number: int) -> ServerEvent:
    return ServerEvent("done", {"number": number})


def test_events_come_in_order_until_the_stream_is_closed() -> None:
    stream = make()
    for number in range(3):
        stream.put(event(number))
    stream.close()
    assert list(stream) == [event(0), event(1), event(2)]
    with pytest.raises(Disconnected, match="was closed"):
        stream.get()


def test_a_slow_reader_is_told_how_much_it_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_module, "_MAX_EVENTS", 2)
    stream = make()
    for number in range(5):
        stream.put(event(number))
    assert stream.get() == event(0)
    stream.put(event(5))
    assert [stream.get(), stream.get()] == [event(1), ServerEvent("missed", {"number": 4})]
    stream.put(event(6))
    assert stream.get() == event(6)


def test_a_reader_waits_as_long_as_it_likes() -> None:
    with pytest.raises(Timeout, match=r"no event for 0.001 s"):
        make().get(timeout=0.001)


def test_a_stream_ends_with_its_connection() -> None:
    stream = make()
    stream.put(event(0))
    stream.fail(Disconnected("gone"))
    assert stream.get() == event(0)
    with pytest.raises(Disconnected, match="gone"):
        next(stream)


def test_what_the_server_tells_arrives_in_every_stream(
    broker: FakeBroker, service: ServiceClient
) -> None:
    with service.watch() as first, service.watch() as second:
        broker.push((Event(name="run_created", fields={"run_id": "r"}), ()))
        expected = ServerEvent("run_created", {"run_id": "r"})
        assert [first.get(DEADLINE_S), second.get(DEADLINE_S)] == [expected] * 2
    service.get_server_capabilities()
    assert [header.enabled for header in broker.wait_for("watch")][-2:] == [True, False]


def test_a_stream_that_is_opened_while_the_last_one_is_closed_has_events(
    broker: FakeBroker, service: ServiceClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = service.connection._loop
    remove, streams = loop.remove_stream, list[EventStream]()
    opener = threading.Thread(target=lambda: streams.append(service.watch()))

    def remove_and_open(stream: EventStream) -> bool:
        was_last = remove(stream)
        opener.start()
        opener.join(0.2)  # time to overtake, if it can
        return was_last

    service.get_server_capabilities()
    stream = service.watch()
    monkeypatch.setattr(loop, "remove_stream", remove_and_open)
    stream.close()
    opener.join(DEADLINE_S)
    assert [header.enabled for header in broker.wait_for("watch", 3)] == [True, False, True]


def test_a_stream_that_nobody_holds_is_forgotten(
    broker: FakeBroker, service: ServiceClient
) -> None:
    service.watch()
    gc.collect()
    assert service.connection._loop._open_streams() == []


def test_the_server_may_have_too_many_watchers(
    monkeypatch: pytest.MonkeyPatch, broker: FakeBroker, service: ServiceClient
) -> None:
    monkeypatch.setitem(LIMITS, "room_s", Limit(0, "s", "busy", ""))
    broker.answers["watch"] = lambda header, _: [failure(header, "busy", "64 watch", 0.001)]
    with pytest.raises(Busy, match="64 watch"):
        service.watch()
    assert service.connection._loop._open_streams() == []


def test_a_closed_session_ends_its_streams(service: ServiceClient) -> None:
    stream = service.watch()
    service.close()
    with pytest.raises(Disconnected):
        stream.get(DEADLINE_S)
    stream.close()


def test_a_new_broker_is_asked_for_events_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(LIMITS, "heartbeat_s", Limit(0.05, "s", "", ""))
    context: zmq.Context[Any] = zmq.Context()
    address = f"ipc://{tmp_path}/s"
    first = FakeBroker(context, address)
    with ServiceClient(base_url=address, api_key="") as service, service.watch() as stream:
        first.close()
        second = FakeBroker(context, address)
        second.wait_for("watch")
        second.push((Event(name="worker_ready", fields={}), ()))
        assert stream.get(DEADLINE_S).name == "worker_ready"
    second.close()
    context.term()
