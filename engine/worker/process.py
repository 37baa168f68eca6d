"""A worker: one base model on one device. Runs as a spawned process, or as a thread of its user.

python -P -m weft.engine.worker.process       reads its assignment as one line of JSON from stdin and
                                      ends when stdin is closed, that is, when its parent dies
"""

import json
import logging
import os
import secrets
import signal
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zmq

from ...client import wire
from ...client.errors import WeftError
from ...client.messages import PROTOCOL_VERSION
from ...client.worker_messages import WorkerHello, WorkerReady
from ..files.sites import limit_spans
from ..logs import set_up_logs
from ..trace import Trace
from .config import WorkerConfig
from .network import Network, Stopped
from .progress import STARTING, LoadingProgress

log = logging.getLogger(__name__)

ORPHAN_GRACE_S = 5.0  # between the parent's death and a hard exit
LOAD_FAILED = 3  # exit status; the reason is the last line of stdout


@dataclass(frozen=True, slots=True)
class Assignment:
    """Who a worker is and whom it serves."""

    config: WorkerConfig
    broker_address: str
    worker_id: str
    secret: str = field(repr=False)

    @classmethod
    def to_broker(cls, config: WorkerConfig, broker_address: str, secret: str) -> "Assignment":
        """An assignment with a fresh worker id."""
        return cls(config, broker_address, secrets.token_hex(8), secret)

    def to_json(self) -> str:
        """One line of JSON."""
        fields = {"broker_address": self.broker_address, "worker_id": self.worker_id}
        config = json.loads(self.config.to_json())
        return json.dumps({**fields, "secret": self.secret, "config": config})

    @classmethod
    def from_json(cls, line: str) -> "Assignment":
        """Read what `to_json` wrote."""
        values: dict[str, Any] = json.loads(line)
        config = WorkerConfig.from_json(json.dumps(values.pop("config")))
        return cls(config=config, **values)


def run_worker(
    assignment: Assignment, context: "zmq.Context[zmq.Socket[bytes]]", is_own_process: bool
) -> str:
    """Load the model, serve until told to stop; returns why it stopped.

    Raises:
        WeftError: the model cannot be loaded; the message is meant for the user.
    """
    config = assignment.config
    trace = Trace(Path(config.trace) if config.trace else None)
    hello = WorkerHello(
        versions=[PROTOCOL_VERSION],
        worker_id=assignment.worker_id,
        secret=assignment.secret,
        pid=os.getpid(),
    )
    network = Network(context, assignment.broker_address, hello, trace)
    network.start()
    try:
        progress = LoadingProgress(lambda header: network.send(wire.encode(header)))
        progress.report(STARTING)
        from .loading import (
            load_compute,
        )  # torch loads here, after the first heartbeat is on its way

        loaded = load_compute(config, network, trace, progress, is_own_process=is_own_process)
        network.serve(loaded.limits)
        network.send(
            wire.encode(
                WorkerReady(
                    model=loaded.card,
                    train_credit=loaded.train_credit,
                    sample_credit=loaded.sample_credit,
                    sites=limit_spans(loaded.sites),
                )
            )
        )
        return loaded.compute.run()
    finally:
        network.close()
        trace.close()


def main() -> int:
    """Entry of a spawned worker process; returns its exit status."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the terminal's signals are for the parent
    assignment = Assignment.from_json(sys.stdin.readline())
    set_up_logs(assignment.config.log_format, assignment.config.log_level, who="worker")
    threading.Thread(target=_exit_with_parent, name="weft-parent", daemon=True).start()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        run_worker(assignment, context, is_own_process=True)
    except WeftError as error:
        sys.stdout.write(json.dumps({"code": error.code, "detail": str(error)}) + "\n")
        sys.stdout.flush()
        return LOAD_FAILED
    finally:
        context.destroy(linger=2000)
    return 0


def _exit_with_parent() -> None:
    sys.stdin.read()  # returns when the parent closes the pipe or dies
    threading.Event().wait(ORPHAN_GRACE_S)
    os._exit(0)


__all__ = ["LOAD_FAILED", "Assignment", "Stopped", "main", "run_worker"]

if __name__ == "__main__":
    sys.exit(main())
