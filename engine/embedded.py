"""The whole engine as one object: broker and worker inside a process of yours."""

import logging
import secrets
import tempfile
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

import zmq

from ..client.connection import Connection
from ..client.errors import Disconnected, EngineFailed, WeftError
from ..client.limits import LIMITS
from ..client.service import ServiceClient
from .broker.shell import Broker
from .files.store import CheckpointFiles, Claim
from .worker.config import WorkerConfig
from .worker.launch import STOP_S as WORKER_STOP_S
from .worker.launch import WorkerProcess
from .worker.process import Assignment, run_worker

log = logging.getLogger(__name__)

LOAD_S = 600.0  # the longest a model may take to load
STOP_S = LIMITS["stop_s"].default + 5.0  # until the broker has given up what is under way


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
        config: how the engine runs.
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
        self._process: WorkerProcess | None = None
        self._thread: threading.Thread | None = None
        self.address = f"inproc://weft-{secrets.token_hex(8)}"
        back = (
            f"ipc://{self._temporary.name}/worker"
            if isolate
            else f"inproc://weft-worker-{secrets.token_hex(8)}"
        )
        secret = secrets.token_hex(16)
        files = CheckpointFiles(root)
        self._claim: Claim | None = None
        try:
            self._claim = files.claim()
            self._broker = Broker(
                [self.address, *self.config.listen],
                back,
                secret=secret,
                server=f"weft {version('weft')}",
                files=files,
                insecure=insecure,
                context=self._context,
                on_ready=self._ready.set,
                on_finished=self._on_broker_end,
            )
            self._broker.start()
            self._assignment = Assignment.to_broker(self.worker_config, back, secret)
            self._start_worker(self._assignment)
            self._wait_until_ready()
        except BaseException:
            self.close()
            raise

    def client(self, **settings: Any) -> ServiceClient:
        """A client of this engine, a session of its own; takes what `ServiceClient` takes.

        Raises:
            Disconnected: the engine is closed.
        """
        if self._is_closed:
            raise Disconnected("the engine is closed")
        client = ServiceClient(base_url=self.address, context=self._context, **settings)
        self._connections.add(client.connection)
        return client

    @property
    def addresses(self) -> list[str]:
        """Where clients outside this process connect, with the ports that were taken."""
        return [] if self._broker is None else self._broker.addresses[1:]

    @property
    def worker_pid(self) -> int | None:
        """Process id of an isolated worker."""
        return None if self._process is None else self._process.pid

    @property
    def is_healthy(self) -> bool:
        """Whether broker and worker still run."""
        return self._has_worker and self._has_broker

    def close(self) -> None:
        """End our clients, finish what has started, stop the worker, free everything."""
        if self._is_closed:
            return
        self._is_closed = True
        worker_stop_s = WORKER_STOP_S if self._ready.is_set() else 0.0  # deaf while it loads
        for connection in list(self._connections):
            connection.close()
        if self._broker is not None:
            self._broker.stop()
            self._broker.join(STOP_S)
        if self._process is not None:
            self._process.join(worker_stop_s)
        if self._thread is not None:
            self._thread.join(timeout=STOP_S)
        self._context.destroy(linger=0)
        if self._claim is not None:
            self._claim.release()
        self._temporary.cleanup()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _start_worker(self, assignment: Assignment) -> None:
        if self.config.isolate:
            self._process = WorkerProcess(assignment, self._on_exit)
            return
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
            self._on_exit(error)

        self._thread = threading.Thread(target=serve, name="weft-compute", daemon=True)
        self._thread.start()

    def _on_exit(self, error: WeftError | None) -> None:
        self._failure = error
        self._has_worker = False
        if self._broker is not None:
            detail = str(error or "the worker has stopped")
            self._broker.worker_gone(self._assignment.worker_id, detail)
        self._ready.set()

    def _on_broker_end(self) -> None:
        self._has_broker = False
        self._ready.set()

    def _wait_until_ready(self) -> None:
        if not self._ready.wait(LOAD_S):
            raise EngineFailed(f"the model was not loaded after {LOAD_S:.0f} s")
        if not self.is_healthy:
            raise self._failure or EngineFailed("the engine ended while it loaded")
