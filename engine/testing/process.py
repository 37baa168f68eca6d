"""A local twin as a process of its own.

python -P -m weft.engine.testing.process   reads its settings as one line of JSON from stdin, says
                                           where it serves in one line of JSON, and ends when stdin
                                           is closed or its parent has ended
"""

import json
import logging
import os
import select
import signal
import sys
import threading
import time
from pathlib import Path

from ...client.errors import WeftError
from ..gateway.config import START_FAILED
from ..logs import set_up_logs
from ..serving import Server
from ..worker.model_names import TINY, ModelSource, find_model

log = logging.getLogger(__name__)

LOOK_S = 0.5  # between two looks at parent and server
ROOM_BYTES = 1 << 30  # for adapters, activations and pages; many may run side by side


class _Ended(BaseException):
    """Nobody needs the server any more."""


def main() -> int:
    """Entry of the process; returns its exit status."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the terminal's signals are for the parent
    signal.signal(signal.SIGTERM, _end)
    set_up_logs("text", "warning", who="twin")
    settings = json.loads(sys.stdin.readline())
    watch = threading.Thread(
        target=_end_with, args=(settings["parent"],), name="weft-parent", daemon=True
    )
    try:
        watch.start()
        source = find_model(settings["model"])
        with _serve(source) as server:
            _say(
                url=server.url,
                address=server.addresses[0],
                model=served_name(source),
                tokenizer_dir=str(source.directory),
            )
            while server.is_healthy:
                time.sleep(LOOK_S)
            log.error("%s", server.failure or "the broker has ended")
        return 1
    except WeftError as error:
        _say(code=error.code, detail=str(error))
        return START_FAILED
    except _Ended:
        return 0


def served_name(source: ModelSource) -> str:
    """The name by which clients ask for a model: a directory's is its absolute path."""
    is_directory = source.name != TINY and Path(source.name).expanduser().is_dir()
    return str(source.directory) if is_directory else source.name


def memory_bytes(directory: Path) -> int:
    """What the worker may use: the weights, which float32 may double, and some room."""
    return ROOM_BYTES + 2 * sum(path.stat().st_size for path in directory.glob("*.safetensors"))


def _serve(source: ModelSource) -> Server:
    return Server(
        served_name(source),
        http="127.0.0.1:0",
        listen=["tcp://127.0.0.1:0"],
        device="cpu",
        is_deterministic=True,
        num_threads=1,  # of a small model's steps none is large enough for more
        memory_bytes=memory_bytes(source.directory),
    )


def _say(**fields: str) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def _end(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once: what follows is to end in order
    raise _Ended


def _end_with(parent: int) -> None:
    """Wait until stdin is closed, or the parent is another because it has ended.

    A process that the parent has forked may hold the other end of stdin open after that.
    """
    while os.getppid() == parent:
        if select.select([sys.stdin], [], [], LOOK_S)[0]:
            break
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
