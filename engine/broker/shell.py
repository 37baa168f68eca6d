"""The broker's shell: sockets, clock, journal and thread around `BrokerCore`.

    with Broker(["tcp://127.0.0.1:5757"], "ipc:///tmp/weft-workers") as broker:
        ...

Clients connect to the addresses in `listen`, workers to `worker_address`. A message that cannot be
sent because its peer is gone or does not read is dropped: the core keeps results, and a client
that comes back asks for them.
"""

import ipaddress
import logging
import os
import socket as unix
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import cast

import zmq

from ...client.errors import BadRequest
from ...client.messages import (
    Failure,
    Header,
    Hello,
    Reply,
    Request,
)
from ...client.wire import encode
from ...client.worker_messages import WorkerProgress, WorkerReady
from ..files.jobs import JobResult
from ..files.store import CheckpointFiles
from ..files.thread import StoreThread
from .config import BrokerConfig
from .core import BrokerCore
from .events import (
    Action,
    CatalogLoaded,
    ClientGone,
    ClientMessage,
    Event,
    KeysChanged,
    MalformedMessage,
    Noted,
    NoWorker,
    Persist,
    Persisted,
    StopRequested,
    StoreDone,
    StoreJob,
    Tick,
    ToClient,
    ToWorker,
    WorkerAwaited,
    WorkerGone,
    WorkerLost,
    WorkerMessage,
    WorkerUnreachable,
)
from .journal import Journal, NullJournal
from .key_book import Insiders, KeyBook
from .key_store import KeyStore
from .key_watch import KeyWatch
from .reading import RawFrame, read_client, read_worker, receive, send
from .telling import logs_requests, tell

log = logging.getLogger(__name__)

Read = Callable[[list[RawFrame]], ClientMessage | MalformedMessage | WorkerMessage | None]

TICK_S = 1.0
BURST = 64  # messages taken from one socket before the other has its turn
LINGER_MS = 1000
SEND_QUEUE = 10_000  # messages to one peer that does not read


class Broker:
    """A broker in a thread of its own."""

    def __init__(
        self,
        listen: Sequence[str],
        worker_address: str,
        *,
        config: BrokerConfig | None = None,
        secret: str = "",
        server: str = "weft",
        journal: Journal | None = None,
        files: CheckpointFiles | None = None,
        keys: KeyStore | None = None,
        operator_key: str = "",
        inside_secret: bytes = b"",
        insecure: bool = False,
        context: "zmq.Context[zmq.Socket[bytes]] | None" = None,
        on_ready: Callable[[], None] | None = None,
        on_progress: Callable[[str, float], None] | None = None,
        on_lost: Callable[[str], None] | None = None,
        on_finished: Callable[[], None] | None = None,
    ) -> None:
        """Bind both sockets; nothing is answered before `start`.

        Args:
            listen: addresses for clients, tcp://, ipc:// or inproc://. Port 0 or * takes any.
            worker_address: one address for workers.
            config: limits and times.
            secret: what workers must show; "" admits any.
            server: name and version, for clients.
            journal: what makes outcomes durable; nothing by default.
            files: where checkpoints are kept; None keeps none.
            keys: where API keys are kept; None: whoever comes is the tenant `local`.
            operator_key: whoever shows it may ask how the server does, and nothing else.
            inside_secret: makes keys of `inside_key`; b"" makes none.
            insecure: allow a TCP address that other machines reach, without encryption.
            context: to share for inproc://; otherwise one of its own.
            on_ready: called in the broker's thread whenever a worker can take work.
            on_progress: called there with phase and fraction while a worker loads.
            on_lost: called there with the id of a worker that the broker has given up.
            on_finished: called in the broker's thread at its end.

        Raises:
            BadRequest: an address that is taken, cannot be bound, or needs `insecure`; a file of
                keys that is damaged.
        """
        for address in [*listen, worker_address]:
            check_address(address, insecure)
        self.config = config or BrokerConfig()
        self._journal: Journal = journal or NullJournal()
        self._insiders = Insiders(operator_key, inside_secret)
        self._key_watch = None if keys is None else KeyWatch(keys)
        self._core = BrokerCore(
            self.config,
            server=server,
            secret=secret,
            keys=self._key_book(),
            wall_offset=_wall_offset(),
            started=time.time(),
            logs_requests=logs_requests(),
        )
        self._owns_context = context is None
        self._context: zmq.Context[zmq.Socket[bytes]] = context or zmq.Context()
        self._on_ready = on_ready
        self._on_progress = on_progress
        self._on_lost = on_lost
        self._on_finished = on_finished
        found = () if files is None else tuple(files.scan())
        self._outside: deque[Event] = deque([CatalogLoaded(found)])
        self._store = StoreThread(files, self._store_done)
        self._is_finished = False
        self._persisted = 0
        self._actions: list[Action] = []  # decided and not yet carried out
        self._wake_lock = threading.Lock()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._front = self._router(self.config.part_bytes + self.config.header_bytes)
        self._back = self._router(-1)
        self._thread = threading.Thread(target=self._run, name="weft-broker", daemon=True)
        try:
            self.addresses = [_bind(self._front, address) for address in listen]
            self.worker_address = _bind(self._back, worker_address)
        except BaseException:
            self._close()
            raise

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Ask to finish: queued work is refused, dispatched work is awaited. Safe from any thread."""
        self._post(StopRequested())

    def inside_key(self, tenant: str) -> str:
        """A key of a tenant, by its id, for clients in the process of this broker.

        Raises:
            BadRequest: no tenant can have this id.
        """
        return self._insiders.key(tenant)

    def worker_gone(self, worker_id: str, detail: str) -> None:
        """Say that a worker's process has ended. Safe from any thread."""
        self._post(WorkerGone(worker_id, detail))

    def worker_awaited(self, detail: str) -> None:
        """Say that a worker is about to be started again, and why. Safe from any thread."""
        self._post(WorkerAwaited(detail))

    def no_worker(self, detail: str) -> None:
        """Say that no worker will come any more, and why. Safe from any thread."""
        self._post(NoWorker(detail))

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for the end after `stop`; whether it came."""
        if self._thread.ident is None:  # never started
            self._close()
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def __enter__(self) -> "Broker":
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        self.join()

    def _router(self, max_frame_bytes: int) -> "zmq.Socket[bytes]":
        socket = self._context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.MAXMSGSIZE, max_frame_bytes)
        socket.setsockopt(zmq.LINGER, LINGER_MS)
        socket.setsockopt(zmq.SNDHWM, SEND_QUEUE)
        return socket

    def _store_done(self, number: int, result: JobResult) -> None:
        self._post(StoreDone(number, result))

    def _post(self, event: Event) -> None:
        self._outside.append(event)
        self._wake()

    def _wake(self) -> None:
        with self._wake_lock:
            if self._wake_write < 0:
                return
            try:
                os.write(self._wake_write, b"w")
            except BlockingIOError:  # wake-ups enough are waiting
                return

    # In the broker's thread.

    def _run(self) -> None:
        try:
            self._journal.start(self._wake)
            self._store.start()
            self._loop()
            self._journal.stop()
        except zmq.ContextTerminated:
            log.warning("the messaging context was closed under the broker")
        except Exception:
            log.exception("the broker failed")
        finally:
            self._store.stop()
            self._close()
            if self._on_finished is not None:
                self._on_finished()

    def _loop(self) -> None:
        poller = zmq.Poller()
        for item in (self._wake_read, self._front, self._back):
            poller.register(item, zmq.POLLIN)
        next_tick = time.monotonic()
        while not self._is_finished:
            wait_s = max(0.0, next_tick - time.monotonic())
            ready = dict(poller.poll(0 if self._outside else int(wait_s * 1000) + 1))
            if self._wake_read in ready:
                os.read(self._wake_read, 4096)
            while self._outside:
                self._handle(self._outside.popleft())
            if self._back in ready:
                self._receive(self._back, read_worker)
            if self._front in ready:
                self._receive(self._front, read_client)
            if time.monotonic() >= next_tick:
                next_tick = time.monotonic() + TICK_S
                self._look_at_keys()
                self._handle(Tick(_wall_offset()))
            self._carry_out()

    def _receive(self, socket: "zmq.Socket[bytes]", read: Read) -> None:
        for _ in range(BURST):
            frames = receive(socket)
            if frames is None:
                return
            event = read(frames)
            if type(event) is ClientMessage and type(event.header) is Hello:
                self._look_at_keys()
            if event is not None:
                self._handle(event)

    def _handle(self, event: Event) -> None:
        try:
            self._actions += self._core.handle(event, time.monotonic())
            if type(event) is WorkerMessage:
                self._tell_of_worker(event.header)
        except Exception:  # the boundary to peers: one bad event must not end the broker
            log.exception("%s was not handled", type(event).__name__)
            if isinstance(event, ClientMessage) and isinstance(event.header, Request):
                self._tell(event.peer, event.header.request_id, "internal", "a fault of the broker")

    def _tell_of_worker(self, header: Header) -> None:
        if type(header) is WorkerReady and self._on_ready is not None:
            self._on_ready()
        elif isinstance(header, WorkerProgress) and self._on_progress is not None:
            self._on_progress(header.phase, header.fraction)

    def _look_at_keys(self) -> None:
        """Before every hello, so that a key counts as soon as it is made, and now and then."""
        if self._key_watch is not None and self._key_watch.glance():
            log.info("the API keys have changed")
            self._handle(KeysChanged(self._key_book()))

    def _key_book(self) -> KeyBook:
        watch = self._key_watch
        return KeyBook(None if watch is None else watch.secrets, self._insiders)

    def _carry_out(self) -> None:
        """Take the actions of a whole burst together, and those that the journal then allows.

        Messages sent in a row share wake-ups and writes of the messaging thread.
        """
        while True:
            actions, self._actions = self._actions, []
            for action in actions:
                self._act(action)
            number = self._journal.persisted()
            if number > self._persisted:
                self._persisted = number
                self._handle(Persisted(number))
            if not self._actions:
                return

    def _act(self, action: Action) -> None:
        kind = type(action)
        if kind is ToWorker:
            peer, header, frames = cast(ToWorker, action)
            if not send(self._back, peer, [encode(header), *frames]):
                self._outside.append(WorkerUnreachable(peer))
        elif kind is ToClient:
            self._send_client(cast(ToClient, action))
        elif kind is Persist:
            self._journal.append(*cast(Persist, action))
        elif kind is StoreJob:
            self._store.submit(*cast(StoreJob, action))
        elif kind is Noted:
            tell(cast(Noted, action))
        elif kind is WorkerLost:
            if self._on_lost is not None:
                self._on_lost(cast(WorkerLost, action).worker_id)
        else:
            self._is_finished = True

    def _send_client(self, action: ToClient) -> None:
        peer, header, frames = action
        if header is not None:
            try:
                frames = [encode(header), *frames]
            except BadRequest as error:  # it does not fit into a header
                if isinstance(header, Reply):
                    self._tell(peer, header.request_id, error.code, str(error))
                return
        if not send(self._front, peer, frames):
            self._outside.append(ClientGone(peer))

    def _tell(self, peer: bytes, request_id: int, code: str, detail: str) -> None:
        failure = Failure(request_id=request_id, code=code, detail=detail)
        send(self._front, peer, [encode(failure)])

    def _close(self) -> None:
        self._front.close()
        self._back.close()
        if self._key_watch is not None:
            self._key_watch.close()
        with self._wake_lock:
            if self._wake_write >= 0:
                os.close(self._wake_write)
                os.close(self._wake_read)
                self._wake_write = self._wake_read = -1
        if self._owns_context:
            self._context.term()


def _wall_offset() -> float:
    return time.time() - time.monotonic()


def check_address(address: str, insecure: bool = False) -> None:
    """Refuse an address that is none, or that other machines reach, unless told otherwise.

    Raises:
        BadRequest: as said above.
    """
    scheme, separator, rest = address.partition("://")
    if not separator or scheme not in ("tcp", "ipc", "inproc") or not rest:
        raise BadRequest(f"{address!r} is no address: tcp://host:port, ipc://path or inproc://name")
    if scheme != "tcp" or insecure:
        return
    host = rest.rpartition(":")[0].strip("[]")
    if host != "localhost" and not _is_loopback(host):
        raise BadRequest(
            f"{address} can be reached from other machines and is not encrypted; "
            "listen on 127.0.0.1, or pass --insecure"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name or an interface
        return False


def _bind(socket: "zmq.Socket[bytes]", address: str) -> str:
    """Bind and return the address with the port that was taken."""
    if _is_answered(address):  # ZeroMQ would take the file away from whoever listens there
        raise BadRequest(f"{address} is taken: another server listens there", "conflict")
    try:
        socket.bind(address.replace("tcp://localhost:", "tcp://127.0.0.1:"))
    except zmq.ZMQError as error:
        if error.errno == zmq.EADDRINUSE:
            detail = f"{address} is taken: another server listens there; choose another port"
            raise BadRequest(detail, "conflict") from None
        raise BadRequest(f"cannot listen on {address}: {error.strerror}") from None
    endpoint = cast(bytes, socket.getsockopt(zmq.LAST_ENDPOINT))
    return endpoint.decode().rstrip("\0")


def _is_answered(address: str) -> bool:
    """Whether somebody listens on an ipc:// address; a file that a dead server left is free."""
    scheme, _, path = address.partition("://")
    if scheme != "ipc" or path.startswith(("@", "*")):  # no file
        return False
    with unix.socket(unix.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    return True
