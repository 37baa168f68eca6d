"""The whole engine as one object: broker and worker inside a process of yours."""

import logging
import os
import secrets
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

import zmq

from ..client.connection import Connection
from ..client.errors import BadRequest, Disconnected, EngineFailed, WeftError
from ..client.limits import LIMITS
from ..client.service import ServiceClient
from .broker.key_book import LOCAL, KeyBook
from .broker.key_store import KeyStore
from .broker.shell import Broker
from .files.store import CheckpointFiles, Claim
from .worker.config import WorkerConfig
from .worker.process import Assignment, run_worker
from .worker.supervisor import Supervisor

log = logging.getLogger(__name__)

LOAD_S = 600.0  # the longest a model may take to load
STOP_S = LIMITS["stop_s"].default + 5.0  # until the broker has given up what is under way
SHORT_FOLDER = "/tmp"  # for a socket whose path would be too long elsewhere


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Settings of an engine beside those of its worker."""

    isolate: bool = False  # run the worker as a child process instead of a thread
    listen: tuple[str, ...] = ()  # addresses for clients outside this process
    insecure: bool = False  # allow a listen address beyond loopback
    state_dir: str = ""  # where saved states go; "" is a temporary directory that goes with us


class Engine:
    """A running engine; use it as a context manager or call `close`.

        with Engine("weft/tiny") as engine:
            service = engine.client()

    Args:
        model: "weft/tiny", a directory in Hugging Face layout, or a name on the hub.
        isolate, listen, insecure, state_dir: see `EngineConfig`.
        operator_key: whoever shows it may ask how the server does, and nothing else.
        on_progress: told phase and fraction (-1: not known) while a worker loads; any thread.
        worker_settings: fields of `WorkerConfig`, such as device, dtype, is_deterministic, trace.

    In process, the worker shares your interpreter: a busy Python thread of yours slows its small
    operations, and your torch settings are left alone. `isolate=True` avoids both.

    Raises:
        WeftError: the model cannot be loaded or an address is taken; says what to do.
    """

    def __init__(
        self,
        model: str = "weft/tiny",
        *,
        isolate: bool = False,
        listen: Sequence[str] = (),
        insecure: bool = False,
        state_dir: str = "",
        operator_key: str = "",
        on_progress: Callable[[str, float], None] | None = None,
        **worker_settings: Any,
    ) -> None:
        self.config = EngineConfig(
            isolate=isolate, listen=tuple(listen), insecure=insecure, state_dir=state_dir
        )
        settings = WorkerConfig(model=model, state_dir=state_dir, **worker_settings)
        self._temporary = tempfile.TemporaryDirectory(prefix="weft-")
        root = Path(state_dir or Path(self._temporary.name) / "state")
        self.worker_config = replace(settings, state_dir=str(root))
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        # Connections, not clients: a run or sampler keeps one open when its client is gone.
        self._connections: weakref.WeakSet[Connection] = weakref.WeakSet()
        self._is_closed = False
        self._has_worker = self._has_broker = True
        self._ready = threading.Event()
        self._failure: WeftError | None = None
        self._broker: Broker | None = None
        self._supervisor: Supervisor | None = None
        self._thread: threading.Thread | None = None
        self.address = f"inproc://weft-{secrets.token_hex(8)}"
        self._sockets: tempfile.TemporaryDirectory[str] | None = None
        back = f"inproc://weft-worker-{secrets.token_hex(8)}"
        if isolate:
            self._sockets = socket_folder()
            back = f"ipc://{self._sockets.name}/worker"
        secret = secrets.token_hex(16)
        files = CheckpointFiles(root)
        self.keys = KeyStore(root)
        self._claim: Claim | None = None
        try:
            self._claim = files.claim()
            self._broker = Broker(
                [self.address, *self.config.listen],
                back,
                secret=secret,
                server=f"weft {version('weft')}",
                files=files,
                keys=self.keys,
                operator_key=operator_key,
                inside_secret=secrets.token_bytes(32),
                insecure=insecure,
                context=self._context,
                on_ready=self._on_ready,
                on_progress=on_progress,
                on_lost=self._on_lost,
                on_finished=self._on_broker_end,
            )
            self._broker.start()
            self._start_worker(self._broker, back, secret)
            self._wait_until_ready()
        except BaseException:
            self.close()
            raise

    def client(
        self, *, tenant: str = LOCAL, api_key: str | None = None, **settings: Any
    ) -> ServiceClient:
        """A client of this engine, a session of its own; takes what `ServiceClient` takes.

        Args:
            tenant: whose client it is, by id: whoever holds the engine may be any tenant, whatever
                keys there are. New ids make new tenants.
            api_key: be the tenant of this key instead, as clients outside are.

        Raises:
            BadRequest: no tenant can have this id.
            Disconnected: the engine is closed.
        """
        if self._is_closed or self._broker is None:
            raise Disconnected("the engine is closed")
        key = self._broker.inside_key(tenant) if api_key is None else api_key
        client = ServiceClient(
            base_url=self.address, context=self._context, api_key=key, **settings
        )
        self._connections.add(client.connection)
        return client

    @property
    def addresses(self) -> list[str]:
        """Where clients outside this process connect, with the ports that were taken."""
        return [] if self._broker is None else self._broker.addresses[1:]

    def describe_keys(self) -> str:
        """Who may connect, in a sentence."""
        found = self.keys.secrets()
        if found is None:
            return "no API keys: whoever connects is the tenant local; weft key create ends that"
        number = KeyBook(found).count(time.time())
        return f"API keys are needed: {number} {'is' if number == 1 else 'are'} active"

    @property
    def worker_pid(self) -> int | None:
        """Process id of an isolated worker."""
        return None if self._supervisor is None else self._supervisor.pid

    @property
    def is_healthy(self) -> bool:
        """Whether the broker runs, and a worker does or is being started again."""
        return self._has_worker and self._has_broker

    @property
    def failure(self) -> WeftError | None:
        """Why no worker runs, once none is started any more."""
        return self._failure

    def close(self) -> None:
        """End our clients, finish what has started, stop the worker, free everything."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._supervisor is not None:
            self._supervisor.stop()
        for connection in list(self._connections):
            connection.close()
        if self._broker is not None:
            self._broker.stop()
            self._broker.join(STOP_S)
        if self._supervisor is not None:
            self._supervisor.join()
        if self._thread is not None:
            self._thread.join(timeout=STOP_S)
        self._context.destroy(linger=0)
        if self._claim is not None:
            self._claim.release()
        self._temporary.cleanup()
        if self._sockets is not None:
            self._sockets.cleanup()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _start_worker(self, broker: Broker, address: str, secret: str) -> None:
        def assign() -> Assignment:
            return Assignment.to_broker(self.worker_config, address, secret)

        if self.config.isolate:
            self._supervisor = Supervisor(assign, broker, self._on_end)
            self._supervisor.start()
            return
        assignment = assign()
        log.warning("the worker shares this process; isolate=True keeps it out of your way")

        def serve() -> None:
            error: WeftError | None = None
            try:
                run_worker(assignment, self._context, is_own_process=False)
            except WeftError as caught:
                error = caught
            except Exception as caught:  # the boundary of the worker's thread
                log.exception("the worker failed")
                error = EngineFailed(f"the worker failed: {type(caught).__name__}: {caught}")
            detail = str(error or "the worker has stopped")
            self._on_end(error)
            broker.no_worker(f"the worker has ended: {detail}")
            broker.worker_gone(assignment.worker_id, detail)

        self._thread = threading.Thread(target=serve, name="weft-compute", daemon=True)
        self._thread.start()

    def _on_ready(self) -> None:
        if self._supervisor is not None:
            self._supervisor.ready()
        self._ready.set()

    def _on_lost(self, worker_id: str) -> None:
        if self._supervisor is not None:
            self._supervisor.lost(worker_id)

    def _on_end(self, error: WeftError | None) -> None:
        """No worker runs, and none will."""
        self._failure = error
        self._has_worker = False
        self._ready.set()

    def _on_broker_end(self) -> None:
        self._has_broker = False
        self._ready.set()

    def _wait_until_ready(self) -> None:
        if not self._ready.wait(LOAD_S):
            raise EngineFailed(f"the model was not loaded after {LOAD_S:.0f} s")
        if not self.is_healthy:
            raise self._failure or EngineFailed("the engine ended while it loaded")


def socket_folder() -> "tempfile.TemporaryDirectory[str]":
    """A folder in which a socket's path is not too long, whatever TMPDIR says.

    Raises:
        BadRequest: there is none.
    """
    for parent in (tempfile.gettempdir(), SHORT_FOLDER):
        if len(os.fsencode(parent)) + len("/weft-12345678/worker") <= zmq.IPC_PATH_MAX_LEN:
            try:
                return tempfile.TemporaryDirectory(prefix="weft-", dir=parent)
            except OSError as error:
                log.info("%s cannot hold a socket: %s", parent, error)
    raise BadRequest(
        f"{tempfile.gettempdir()} is too long for a socket and {SHORT_FOLDER} takes none; "
        "set TMPDIR to a shorter path"
    )
