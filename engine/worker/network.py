"""A worker's network thread: decodes and validates what arrives while the device computes.

It owns the socket to the broker. The compute thread takes work from `inbox` and hands back encoded
messages through `send`; neither ever waits for the other.
"""

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import zmq

from ...client import wire
from ...client.errors import WeftError, sentence
from ...client.limits import LIMITS
from ...client.messages import Failure, Heartbeat, Request
from ...client.worker_messages import Dispatch, Failed, Stop, Withdraw, WorkerHello
from ..trace import Trace
from .assembler import Assembler, Frame
from .commands import ModelLimits, Work

log = logging.getLogger(__name__)

POLL_MS = 500
SILENCE_S = 60.0  # a broker silent for so long is gone


@dataclass(frozen=True, slots=True)
class Stopped:
    """No more work will come: the broker asked to stop, or is gone."""

    reason: str


Inbox = queue.SimpleQueue[Work | Withdraw | Stopped]


class Network:
    """The connection of one worker to the broker."""

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        address: str,
        hello: WorkerHello,
        trace: Trace,
    ) -> None:
        self.inbox: Inbox = queue.SimpleQueue()
        self._context = context
        self._address = address
        self._hello = hello
        self._trace = trace
        self._assembler: Assembler | None = None
        self._outbox: deque[Sequence[Frame]] = deque()
        self._wake_address = f"inproc://weft-worker-{hello.worker_id}-{id(self)}"
        self._wake_in = context.socket(zmq.PULL)
        self._wake_in.bind(self._wake_address)
        self._wake_out = context.socket(zmq.PUSH)
        self._wake_out.connect(self._wake_address)
        self._wake_lock = threading.Lock()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="weft-network", daemon=True)

    def start(self) -> None:
        """Say hello and begin to send heartbeats; work is accepted once `serve` was called."""
        self._thread.start()

    def serve(self, limits: ModelLimits) -> None:
        """Accept work for a model with these limits."""
        self._assembler = Assembler(limits)

    def send(self, *frames: Frame) -> None:
        """Queue one message to the broker. Safe from any thread."""
        self._outbox.append(frames)
        self._wake()

    def close(self) -> None:
        """Send what is queued, then end the thread."""
        self._is_closing = True
        self._wake()
        self._thread.join(timeout=10)
        self._wake_out.close(linger=0)

    def _wake(self) -> None:
        with self._wake_lock:
            if not self._wake_out.closed:
                try:
                    self._wake_out.send(b"", zmq.NOBLOCK)
                except zmq.Again:  # the thread has wake-ups enough to read
                    return

    def _run(self) -> None:
        socket = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 2000)
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.connect(self._address)
        try:
            self._loop(socket)
        except zmq.ContextTerminated:
            self.inbox.put(Stopped("the messaging context was closed"))
        except zmq.Again:
            self.inbox.put(Stopped("the broker is gone"))
        except Exception as error:  # nobody would be heard any more: the worker ends
            log.exception("the network thread failed")
            self.inbox.put(Stopped(f"the network thread failed: {error}"))
        finally:
            self._wake_in.close(linger=0)
            socket.close()

    def _loop(self, socket: "zmq.Socket[bytes]") -> None:
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        poller.register(self._wake_in, zmq.POLLIN)
        _send(socket, (wire.encode(self._hello),))
        heartbeat_s = float(LIMITS["heartbeat_s"].default)
        last_sent = last_heard = time.monotonic()
        while True:
            ready = dict(poller.poll(POLL_MS))
            if self._wake_in in ready:
                self._wake_in.recv()
            while self._outbox:
                _send(socket, self._outbox.popleft())
                last_sent = time.monotonic()
            if socket in ready:
                last_heard = time.monotonic()
                self._receive(socket)
            now = time.monotonic()
            if now - last_sent > heartbeat_s:
                _send(socket, (wire.encode(Heartbeat()),))
                last_sent = now
            if now - last_heard > SILENCE_S:
                self.inbox.put(Stopped("the broker is silent"))
                last_heard = now
            if self._is_closing and not self._outbox:
                return

    def _receive(self, socket: "zmq.Socket[bytes]") -> None:
        """Read a bounded number of messages, so that answers and heartbeats get their turn."""
        for _ in range(64):
            try:
                first, *rest = socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            header = wire.decode(first.buffer)
            match header:
                case Dispatch():
                    self._dispatch(header, [frame.buffer for frame in rest])
                case Withdraw():
                    for dispatch_id in header.dispatch_ids:
                        if self._assembler is not None:
                            self._assembler.forget(dispatch_id)
                    self.inbox.put(header)
                case Stop():
                    self.inbox.put(Stopped("the broker asked to stop"))
                case Failure():
                    self.inbox.put(Stopped(f"the broker refused this worker: {header.detail}"))
                case _:
                    continue  # a heartbeat

    def _dispatch(self, dispatch: Dispatch, frames: list[memoryview]) -> None:
        try:
            with self._trace.span("decode", thread="network", lane=dispatch.lane):
                header = wire.decode(frames[0])
                if self._assembler is None or not isinstance(header, Request):
                    raise WeftError("work arrived before the model was ready")
                work = self._assembler.add(dispatch, header, frames[1:])
        except WeftError as error:
            self._refuse(dispatch, error.code, str(error))
            return
        except Exception as error:  # the boundary to bytes of a peer: nothing may end this thread
            self._refuse(dispatch, "internal", f"{type(error).__name__}: {error}")
            return
        if work is not None:
            self.inbox.put(work)

    def _refuse(self, dispatch: Dispatch, code: str, detail: str) -> None:
        self._outbox.append(
            (
                wire.encode(
                    Failed(
                        dispatch_id=dispatch.dispatch_id,
                        lease_epoch=dispatch.lease_epoch,
                        code=code,
                        detail=sentence(detail),
                    )
                ),
            )
        )
        self._wake()


def _send(socket: "zmq.Socket[bytes]", frames: Sequence[Frame]) -> None:
    """Send one message; raises zmq.Again when there is nobody any more at the other end.

    The queue has no bound, so nothing else could make it wait; within a process it would for ever.
    """
    socket.send_multipart(frames, zmq.NOBLOCK, copy=False)
