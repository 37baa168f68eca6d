"""A gateway before a broker with a fake worker, all in this process, and callers of its routes.

No torch and no model: starts in a tenth of a second. The gateway runs in a loop of its own thread.
"""

import asyncio
import http.client
import json
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

import numpy as np
import zmq
from fake_worker import FakeWorker
from sdk_protobuf import message_class

from weft.engine.broker.key_store import KeyStore
from weft.engine.broker.shell import Broker
from weft.engine.files.store import CheckpointFiles
from weft.engine.gateway.call import Route
from weft.engine.gateway.config import GatewayConfig
from weft.engine.gateway.connections import Connections
from weft.engine.gateway.routes import ROUTES
from weft.engine.gateway.server import GatewayServer

T = TypeVar("T")

DEADLINE_S = 30.0  # a hang guard
OPERATOR_KEY = "tml-operator"
FLOAT32, INT64 = 1, 2
VOCAB_SIZE = 100  # of the fake worker's model


class Loop:
    """An asyncio loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run to its end there."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(DEADLINE_S)

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function there."""

        async def call() -> T:
            return function(*arguments)

        return self.run(call())

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE_S)
        self._loop.close()


class Stand:
    """Broker, fake worker and gateway.

    Args:
        folder: for the broker's socket, files and keys.
        keyed: whether API keys are needed; `keys` makes them.
        hold: see `FakeWorker`.
        routes: of the gateway.
        settings: of the gateway.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keyed: bool = False,
        hold: bool = False,
        routes: Sequence[Route] = ROUTES,
        **settings: Any,
    ) -> None:
        self.context: zmq.Context[Any] = zmq.Context()
        self.address = f"ipc://{folder}/front"
        self.keys = KeyStore(folder) if keyed else None
        self._folder = folder
        self._key_ids: dict[str, str] = {}
        self.broker, self.worker = self._begin(hold)
        self.loop = Loop()
        config = GatewayConfig(
            broker=self.address, listen="127.0.0.1:0", api_key=OPERATOR_KEY, **settings
        )
        self.server = GatewayServer(config, routes=routes)
        self.loop.run(self.server.start())
        self.url = self.server.url

    @property
    def gateway(self) -> Any:
        """What all routes share."""
        return self.server._gateway

    @property
    def connections(self) -> Connections:
        """Those that the gateway has."""
        assert self.server._connections is not None
        return self.server._connections

    def caller(self, key: str = "tml-any", *, tenant: str = "") -> "Caller":
        """Somebody with a key, or with a new one of this tenant."""
        if tenant:
            assert self.keys is not None
            entry, key = self.keys.create(tenant)
            self._key_ids[key] = entry.key_id
        return Caller(self.url, key)

    def tenant(self, name: str) -> str:
        """The id of a tenant that has a key."""
        assert self.keys is not None
        return next(key.tenant for key in self.keys.entries() if key.tenant_name == name)

    def revoke(self, api_key: str) -> None:
        """Revoke a key that `caller` made."""
        assert self.keys is not None
        self.keys.revoke(self._key_ids[api_key])

    def broker_sessions(self) -> set[str]:
        """Ids of the sessions that the broker has."""
        return set(self.broker._core._books.sessions.by_id)

    def restart_gateway(self) -> None:
        """End the gateway, and start another on the same port."""
        config = GatewayConfig(
            broker=self.address,
            listen=urlsplit(self.url).netloc,
            api_key=OPERATOR_KEY,
            poll_s=self.server.config.poll_s,
        )
        self.loop.run(self.server.stop())
        self.server = GatewayServer(config)
        self.loop.run(self.server.start())

    def stop_broker(self) -> None:
        """End the broker, and the worker with it."""
        self._has_broker = False
        self.worker.close()
        self.broker.stop()
        assert self.broker.join(DEADLINE_S)

    def start_broker(self) -> None:
        """Start another at the same address."""
        self.broker, self.worker = self._begin(hold=False)

    def add_worker(self) -> None:
        """Let another worker take the place of the one there is."""
        self.worker.close()
        address = self.broker.worker_address
        self.worker = FakeWorker(self.context, address, worker_id="worker-1")

    def close(self) -> None:
        self.loop.run(self.server.stop())
        self.loop.close()
        if self._has_broker:
            self.worker.release()  # the broker waits for what it holds
            self.stop_broker()
        self.context.term()

    def _begin(self, hold: bool) -> tuple[Broker, FakeWorker]:
        broker = Broker(
            [self.address],
            f"inproc://{uuid4().hex}",
            context=self.context,
            files=CheckpointFiles(self._folder),
            keys=self.keys,
            operator_key=OPERATOR_KEY,
        )
        broker.start()
        self._has_broker = True
        return broker, FakeWorker(self.context, broker.worker_address, hold=hold)


@contextmanager
def standing(folder: Path, **settings: Any) -> Iterator[Stand]:
    """A stand that is closed at the end."""
    stand = Stand(folder, **settings)
    try:
        yield stand
    finally:
        stand.close()


@dataclass(frozen=True)
class Answer:
    """A response."""

    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Caller:
    """Whoever has a key: plain HTTP, a connection each time, every header as given."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url
        self.key = key

    def call(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> Answer:
        """Send a request; names of headers may have _ for -."""
        parts = urlsplit(self.url)
        connection = http.client.HTTPConnection(parts.netloc, timeout=DEADLINE_S)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        named = {"X-API-Key": self.key, **named}
        try:
            connection.request(method, path, body, named)
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.call("GET", f"/api/v1/{path}", headers=headers)

    def post(self, path: str, fields: Any, **headers: str) -> Answer:
        """Post JSON, or bytes as they are."""
        return self.send("POST", path, fields, **headers)

    def send(self, method: str, path: str, fields: Any, **headers: str) -> Answer:
        """Send JSON, or bytes as they are."""
        body = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
        return self.call(method, f"/api/v1/{path}", body, headers)

    def session(self, **headers: str) -> str:
        """A new session."""
        answer = self.post("create_session", {"tags": [], "sdk_version": "0.38.0"}, **headers)
        assert answer.status == 200, answer
        return str(answer.json["session_id"])

    def run(self, session_id: str = "", number: int = 0) -> str:
        """A new run."""
        posted = self.post("create_model", model_fields(session_id or self.session(), number))
        return str(self.result(posted).json["model_id"])

    def sampler(self, session_id: str = "", number: int = 0) -> str:
        """A new sampler on the base model."""
        fields = {
            "session_id": session_id or self.session(),
            "sampling_session_seq_id": number,
            "base_model": "tiny",
        }
        answer = self.post("create_sampling_session", fields)
        assert answer.status == 200, answer
        return str(answer.json["sampling_session_id"])

    def step(self, run_id: str, seq: int, **fields: Any) -> Answer:
        """An optim_step."""
        return self.post("optim_step", step_fields(run_id, seq, **fields))

    def passed(self, run_id: str, seq: int, tokens: tuple[int, ...] = (1, 2, 3)) -> Answer:
        """A forward_backward of one datum."""
        return self.post("forward_backward", pass_body(run_id, seq, tokens))

    def sample(self, sampler_id: str, seq: int, **fields: Any) -> Answer:
        """Draw one continuation."""
        return self.post("asample", sample_fields(sampler_id, seq, **fields))

    def poll(self, request_id: str) -> Answer:
        """Ask for a result once."""
        return self.post("retrieve_future", {"request_id": request_id})

    def result(self, posted: Answer) -> Answer:
        """What a post came to, polled for until there is an answer."""
        assert posted.status == 200, posted
        while (answer := self.poll(posted.json["request_id"])).status == 408:
            pass
        return answer


def model_fields(session_id: str, number: int = 0) -> dict[str, Any]:
    """Of a create_model."""
    lora = {"rank": 4, "seed": 1}
    return {
        "session_id": session_id,
        "model_seq_id": number,
        "base_model": "tiny",
        "lora_config": lora,
    }


def step_fields(run_id: str, seq: int, **fields: Any) -> dict[str, Any]:
    """Of an optim_step."""
    return {"model_id": run_id, "seq_id": seq, "adam_params": {"learning_rate": 1e-3, **fields}}


def sample_fields(sampler_id: str, seq: int, **fields: Any) -> dict[str, Any]:
    """Of an asample."""
    values = {
        "sampling_session_id": sampler_id,
        "seq_id": seq,
        "num_samples": 1,
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": [1, 2, 3]}]},
        "sampling_params": {"max_tokens": 2, "seed": seq},
    }
    return {**values, **fields}


def pass_body(run_id: str, seq: int, tokens: tuple[int, ...] = (1, 2, 3)) -> bytes:
    """The body of a forward_backward of one datum."""
    message = message_class("ForwardBackwardRequest")(
        model_id=run_id, seq_id=seq, loss_fn="cross_entropy"
    )
    datum = message.data.add()
    datum.model_input.add().encoded_text.tokens = np.array(tokens, np.int32).tobytes()
    inputs = {"target_tokens": np.array(tokens), "weights": np.ones(len(tokens), np.float32)}
    for name, values in inputs.items():
        tensor = datum.loss_fn_inputs[name]
        tensor.dense = values.tobytes()
        tensor.dtype = INT64 if values.dtype == np.int64 else FLOAT32
        tensor.shape.extend(values.shape)
    return bytes(message.SerializeToString())


@contextmanager
def gateway_of(address: str, **settings: Any) -> Iterator[tuple[GatewayServer, Loop]]:
    """A gateway before any broker, and the loop it runs in."""
    loop = Loop()
    server = GatewayServer(GatewayConfig(broker=address, listen="127.0.0.1:0", **settings))
    try:
        loop.run(server.start())
        yield server, loop
    finally:
        loop.run(server.stop())
        loop.close()
