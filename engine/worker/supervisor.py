"""Keeps one worker process running: starts it, and starts it again when it dies."""

import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Protocol

from ...client.errors import EngineFailed, WeftError, from_code
from ..restarts import GiveUp, Restarts
from .launch import STOP_S, WorkerProcess
from .process import Assignment

log = logging.getLogger(__name__)

ENDING_S = 5.0  # from the loss of a worker's connection until its process is killed


class Listener(Protocol):
    """Who is told of a worker's life, from a thread of the supervisor's."""

    def worker_gone(self, worker_id: str, detail: str) -> None:
        """A process has ended; what follows has been said."""
        ...

    def worker_awaited(self, detail: str) -> None:
        """Another is about to be started."""
        ...

    def no_worker(self, detail: str) -> None:
        """No other will be started."""
        ...


class Supervisor:
    """One worker process at a time.

    Until `ready` was called for the first time an end is final: a model that cannot be loaded is
    the user's to mend. After that a worker that ends unasked is started again, as `Restarts` says.

    Args:
        assign: makes the assignment of each process.
        listener: is told what happens.
        on_end: called once when it is over, with the error that explains it.
    """

    def __init__(
        self,
        assign: Callable[[], Assignment],
        listener: Listener,
        on_end: Callable[[WeftError], None],
        restarts: Restarts | None = None,
    ) -> None:
        self._assign = assign
        self._listener = listener
        self._on_end = on_end
        self._restarts = restarts or Restarts()
        self._exits: queue.SimpleQueue[WeftError | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._is_stopping = threading.Event()
        self._was_ready = False
        self._is_loading = True
        self._assignment = assign()
        self._process: WorkerProcess | None = None
        self._thread = threading.Thread(target=self._run, name="weft-supervisor", daemon=True)

    def start(self) -> None:
        """Start the first worker; raises EngineFailed when there can be no process."""
        self._process = self._launch()
        self._thread.start()

    @property
    def pid(self) -> int | None:
        """Process id of the worker, of the last one between two."""
        return None if self._process is None else self._process.pid

    def ready(self) -> None:
        """The worker has loaded."""
        self._was_ready, self._is_loading = True, False

    def lost(self, worker_id: str) -> None:
        """The broker has given this worker up: a process that hangs is killed.

        One that has closed its connection may be about to end and to say why, so it has a moment.
        """
        with self._lock:
            process = self._process
            if process is not None and worker_id == self._assignment.worker_id:
                threading.Thread(
                    target=process.join, args=(ENDING_S,), name="weft-ending", daemon=True
                ).start()

    def stop(self) -> None:
        """Start nothing more; an end is regular from here on."""
        with self._lock:
            self._is_stopping.set()

    def join(self) -> None:
        """Wait until the process has ended after `stop`; one that does not heed it is killed."""
        if self._process is not None:
            self._process.join(0.0 if self._is_loading else STOP_S)  # deaf while it loads
            self._thread.join(STOP_S)

    def _run(self) -> None:
        while True:
            error = self._exits.get()
            if self._is_stopping.is_set():
                return
            self._is_loading = True
            pause_s = self._exited(error or EngineFailed("the worker has stopped"))
            if pause_s is None or self._is_stopping.wait(pause_s) or not self._start():
                return

    def _exited(self, error: WeftError) -> float | None:
        """Say what follows from an end; returns the pause before the next start, None for none.

        What comes next is said first: nobody is to wonder what to wait for.
        """
        worker_id = self._assignment.worker_id
        if not self._was_ready:
            self._listener.worker_gone(worker_id, str(error))
            self._on_end(error)
            return None
        decision = self._restarts.died(time.monotonic())
        if isinstance(decision, GiveUp):
            final = from_code("no_worker", f"{decision.detail}, at last because {error}")
            log.error("%s", final)
            self._on_end(final)
            self._listener.no_worker(str(final))
            self._listener.worker_gone(worker_id, str(error))
            return None
        detail = f"{error}, and is started again ({decision.number} of {decision.most} times)"
        log.warning("%s", detail)
        self._listener.worker_awaited(detail)
        self._listener.worker_gone(worker_id, str(error))
        return decision.after_s

    def _start(self) -> bool:
        with self._lock:
            if self._is_stopping.is_set():
                return False
            self._assignment = self._assign()
            try:
                self._process = self._launch()
            except EngineFailed as error:  # counts as a death
                self._exits.put(error)
            return True

    def _launch(self) -> WorkerProcess:
        try:
            return WorkerProcess(self._assignment, self._exits.put)
        except OSError as error:  # such as no memory for it
            raise EngineFailed(f"the worker process could not be started: {error}") from error
