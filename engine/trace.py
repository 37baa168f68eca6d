"""Write what the engine does as a Chrome trace (open it in Perfetto or chrome://tracing)."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

THREADS = ("compute", "network")  # lanes of the picture, in this order


class Trace:
    """Spans of one process, appended to a JSON array file.

    The array's closing bracket is written by `close`; viewers accept a file without it, so a killed
    process leaves a readable trace. Without a path nothing is recorded and a span costs one call.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._file: TextIO | None = None
        self._lock = threading.Lock()
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("w", encoding="utf-8")
            self._file.write("[\n")
            for index, name in enumerate(THREADS):
                event = {"name": "thread_name", "ph": "M", "pid": 1, "tid": index}
                self._write({**event, "args": {"name": name}})

    @property
    def is_on(self) -> bool:
        """Whether spans are kept; lets a caller skip the work of describing them."""
        return self._file is not None

    @contextmanager
    def span(self, name: str, thread: str = "compute", **args: Any) -> Iterator[dict[str, Any]]:
        """Record the time of a block; the block may add to the yielded arguments."""
        if self._file is None:
            yield args
            return
        start = time.time()
        try:
            yield args
        finally:
            self._write(
                {
                    "name": name,
                    "ph": "X",
                    "ts": round(start * 1e6),
                    "dur": round((time.time() - start) * 1e6),
                    "pid": 1,
                    "tid": THREADS.index(thread),
                    "args": args,
                }
            )

    def flush(self) -> None:
        """Push what was recorded so far to the file."""
        with self._lock:
            if self._file is not None:
                self._file.flush()

    def close(self) -> None:
        """Finish the file; later spans are not recorded."""
        with self._lock:
            if self._file is not None:
                self._file.write("{}]\n")
                self._file.close()
                self._file = None

    def _write(self, event: dict[str, Any]) -> None:
        with self._lock:
            if self._file is not None:
                self._file.write(json.dumps(event) + ",\n")


def read_trace(path: Path) -> list[dict[str, Any]]:
    """Load the spans of a trace file, finished or not."""
    text = path.read_text(encoding="utf-8").rstrip()
    if not text.endswith("]"):
        text = text[: text.rfind("}") + 1] + "]"
    return [event for event in json.loads(text) if event.get("ph") == "X"]
