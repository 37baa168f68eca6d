"""Keys of a running broker, over real sockets and with the real client."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from fake_worker import FakeWorker

from weft.client import AdamParams, ServiceClient, TrainingClient
from weft.client.errors import BadRequest, Unauthorized
from weft.engine.broker import shell
from weft.engine.broker.key_store import KeyStore
from weft.engine.broker.shell import Broker

DEADLINE_S = 20

Context = zmq.Context[Any]
Connect = Callable[[str], ServiceClient]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell, "TICK_S", 0.02)


class Keys:
    """Two keys of Alice's and one of Bob's, made before the broker starts."""

    def __init__(self, folder: Path) -> None:
        self.store = KeyStore(folder)
        self.alice, self.first = self.store.create("alice", "laptop")
        self.second = self.store.create("alice")[1]
        self.bob, self.bobs = self.store.create("bob")


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path)


@pytest.fixture
def broker(start: Callable[..., Broker], keys: Keys) -> Broker:
    return start(keys=keys.store, operator_key="tml-operator", inside_secret=b"s" * 32)


@pytest.fixture
def worker(broker: Broker, context: Context) -> Iterator[FakeWorker]:
    made = FakeWorker(context, broker.worker_address)
    yield made
    made.close()


@pytest.fixture
def connect(broker: Broker, context: Context) -> Iterator[Connect]:
    clients = []

    def begin(api_key: str) -> ServiceClient:
        client = ServiceClient(base_url=broker.addresses[0], api_key=api_key, context=context)
        clients.append(client)
        return client

    yield begin
    for client in clients:
        client.close()


def tenant(client: ServiceClient) -> str:
    """Who the server says that a client is."""
    client.get_status().result(DEADLINE_S)
    welcome = client.connection.welcome()
    assert welcome is not None
    return welcome.tenant


def refusal(client: ServiceClient) -> Unauthorized:
    """The error that a client gets once the broker has noticed."""
    while True:
        try:
            client.get_status().result(DEADLINE_S)
        except Unauthorized as error:
            return error


def open_run(client: ServiceClient) -> TrainingClient:
    return client.create_lora_training_client("tiny", rank=4, seed=1)


def test_each_key_is_its_tenant(keys: Keys, connect: Connect) -> None:
    found = [tenant(connect(key)) for key in (keys.first, keys.second, keys.bobs)]
    assert found == [keys.alice.tenant, keys.alice.tenant, keys.bob.tenant]


@pytest.mark.parametrize("api_key", ["", "tml-wrong"])
def test_a_wrong_key_is_an_error_at_once(connect: Connect, api_key: str) -> None:
    client = connect(api_key)
    for _ in range(2):  # again at once: nothing is sent
        with pytest.raises(Unauthorized, match="the API key is"):
            client.get_status().result(DEADLINE_S)


def test_a_key_from_the_environment_is_used(
    keys: Keys, broker: Broker, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEFT_API_KEY", keys.bobs)
    with ServiceClient(base_url=broker.addresses[0], context=context) as client:
        assert tenant(client) == keys.bob.tenant


def test_a_revoked_key_ends_all_that_waits(
    keys: Keys, worker: FakeWorker, connect: Connect
) -> None:
    client = connect(keys.first)
    run = open_run(client)
    worker.hold = True
    waiting = [run.optim_step(AdamParams()) for _ in range(2)]
    stream = client.connection.watch()
    keys.store.revoke(keys.alice.key_id)
    for future in waiting:
        with pytest.raises(Unauthorized, match="revoked"):
            future.result(DEADLINE_S)
    with pytest.raises(Unauthorized):
        list(stream)
    with pytest.raises(Unauthorized):
        run.optim_step(AdamParams()).result(DEADLINE_S)
    worker.release()


def test_another_key_of_the_tenant_finds_its_runs(
    keys: Keys, worker: FakeWorker, connect: Connect
) -> None:
    client = connect(keys.first)
    run_id = open_run(client).model_id
    keys.store.revoke(keys.alice.key_id)
    refusal(client)
    found = []
    for key in (keys.second, keys.bobs):
        rest = connect(key).create_rest_client()
        listed = rest.list_training_runs().result(DEADLINE_S).training_runs
        found.append([run.training_run_id for run in listed])
    assert found == [[run_id], []]


def test_the_first_key_closes_an_open_server_for_good(
    start: Callable[..., Broker], tmp_path: Path, context: Context
) -> None:
    store = KeyStore(tmp_path / "state")
    settings: dict[str, Any] = {"base_url": start(keys=store).addresses[0], "context": context}
    with (
        ServiceClient(api_key="", **settings) as client,
        ServiceClient(api_key="", **settings) as late,
    ):
        assert tenant(client) == "local"
        store.revoke(store.create()[0].key_id)
        refusal(client)
        with pytest.raises(Unauthorized, match="missing"):
            late.get_status().result(DEADLINE_S)


def test_a_key_counts_as_soon_as_it_is_made_or_revoked(
    start: Callable[..., Broker],
    tmp_path: Path,
    context: Context,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shell, "TICK_S", 1000.0)
    store = KeyStore(tmp_path / "state")
    settings: dict[str, Any] = {"base_url": start(keys=store).addresses[0], "context": context}
    with ServiceClient(api_key="", **settings) as client:
        assert tenant(client) == "local"
    key, secret = store.create("alice")
    with ServiceClient(api_key=secret, **settings) as client:
        assert tenant(client) == key.tenant
    store.revoke(key.key_id)
    with ServiceClient(api_key=secret, **settings) as client, pytest.raises(Unauthorized):
        tenant(client)


def test_the_operator_is_known_without_the_file(connect: Connect) -> None:
    status = connect("tml-operator").get_status().result(DEADLINE_S)
    assert status["tenants"] == []


def test_a_client_inside_is_the_tenant_asked_for(broker: Broker, connect: Connect) -> None:
    assert tenant(connect(broker.inside_key("alice"))) == "alice"
    with pytest.raises(BadRequest, match="operator"):
        broker.inside_key("operator")


def test_no_key_is_logged_or_stored_or_said(
    keys: Keys, worker: FakeWorker, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    wrong = "tml-" + "x" * 43
    client, stranger = connect(keys.first), connect(wrong)
    run = open_run(client)
    run.save_state("a").result(DEADLINE_S)
    third = keys.store.rotate(keys.alice.key_id)[1]
    shown = [client, client.connection, run, keys.store.entries(), keys.store.secrets()]
    said = [caplog.text, *map(repr, [*shown, refusal(client), refusal(stranger)])]
    kept = [path.read_bytes() for path in keys.store.path.parent.rglob("*") if path.is_file()]
    assert "session" in caplog.text
    assert b"laptop" in b"".join(kept)
    for secret in (keys.first, keys.second, third, wrong):
        assert all(secret[4:] not in text for text in said)
        assert all(secret[4:].encode() not in content for content in kept)


def test_a_broker_does_not_start_with_a_damaged_file(
    start: Callable[..., Broker], tmp_path: Path
) -> None:
    store = KeyStore(tmp_path)
    store.path.write_text("not a database")
    with pytest.raises(BadRequest, match="damaged"):
        start(keys=store)
