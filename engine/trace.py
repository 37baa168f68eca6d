"""Write what the engine does as a Chrome trace (open it in Perfetto or chrome://tracing)."""

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from ..client.errors import BadRequest

log = logging.getLogger(__name__)

THREADS = ("compute", "network")  # lanes of the picture, in this order
# Spans of whole steps of the compute thread; they never overlap, so their sum is its busy time.
STEPS = frozenset(
    {
        "train_step",
        "forward_step",
        "sample",
        "optimizer",
        "create_run",
        "create_sampler",
        "load_state",
        "save_for_sampler",
        "save_state",
    }
)


class Trace:
    """Spans of one process, appended to a JSON array file.

    Every span is written at once; the array's closing bracket by `close`; viewers accept a file
    without it, so a killed process leaves a readable trace. Without a path nothing is recorded and
    a span costs one call. A file that can no longer be written ends the trace, never the work.

    Raises:
        BadRequest: the file cannot be written.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._file: TextIO | None = None
        self._lock = threading.Lock()
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._file = path.open("w", encoding="utf-8", buffering=1)
                self._file.write("[\n")
            except OSError as error:
                raise BadRequest(f"cannot write a trace to {path}: {error.strerror}") from None
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

    def close(self) -> None:
        """Finish the file; later spans are not recorded."""
        with self._lock:
            if self._file is not None:
                self._append("{}]\n")
                self._end()

    def _write(self, event: dict[str, Any]) -> None:
        with self._lock:
            if self._file is not None:
                self._append(json.dumps(event) + ",\n")

    def _append(self, line: str) -> None:
        try:
            if self._file is not None:
                self._file.write(line)
        except OSError as error:
            log.error("the trace ends here: %s", error)
            self._end()

    def _end(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):  # closing writes what is buffered
                file.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """What a worker did between two moments, read from its trace."""

    wall_s: float
    busy_s: float  # the compute thread spent in steps
    batches_by_tenants: Mapping[int, int]  # tenants in a fused train batch -> number of batches

    @property
    def busy_fraction(self) -> float:
        return self.busy_s / self.wall_s if self.wall_s else 0.0

    @property
    def mean_tenants(self) -> float:
        num_batches = sum(self.batches_by_tenants.values())
        total = sum(tenants * count for tenants, count in self.batches_by_tenants.items())
        return total / num_batches if num_batches else 0.0

    def since(self, earlier: "EngineStats") -> "EngineStats":
        """Return what was counted after `earlier`, which has the same start."""
        counts = {
            tenants: count - earlier.batches_by_tenants.get(tenants, 0)
            for tenants, count in self.batches_by_tenants.items()
        }
        return EngineStats(
            wall_s=self.wall_s - earlier.wall_s,
            busy_s=self.busy_s - earlier.busy_s,
            batches_by_tenants={tenants: count for tenants, count in counts.items() if count},
        )


def read_stats(path: Path) -> EngineStats:
    """Sum up a trace so far; the wall clock runs from its first step to now."""
    steps = [span for span in read_trace(path) if span["name"] in STEPS]
    counts = Counter(span["args"]["tenants"] for span in steps if span["name"] == "train_step")
    return EngineStats(
        wall_s=time.time() - steps[0]["ts"] / 1e6 if steps else 0.0,
        busy_s=sum(span["dur"] for span in steps) / 1e6,
        batches_by_tenants=counts,
    )


def read_trace(path: Path) -> list[dict[str, Any]]:
    """Load the spans of a trace file, finished or not."""
    text = path.read_text(encoding="utf-8").rstrip()
    if not text.endswith("]"):
        text = text[: text.rfind("}") + 1] + "]"
    return [event for event in json.loads(text) if event.get("ph") == "X"]
