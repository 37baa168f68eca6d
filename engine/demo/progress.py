"""What the demo's tenants are doing right now, shared between their threads and the display."""

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from .report import align

SMOOTHED_STEPS = 10


@dataclass(slots=True)
class Row:
    """One tenant."""

    label: str
    method: str
    unit: str  # what the values of its steps are
    phase: str = "joining"
    steps: int = 0
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=SMOOTHED_STEPS))

    @property
    def value(self) -> str:
        return f"{sum(self.recent) / len(self.recent):.2f}" if self.recent else "-"


class Progress:
    """The rows of the live table; all methods may be called from any thread."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = {row.label: row for row in rows}
        self._lock = threading.Lock()
        self._finished = threading.Event()

    def set_phase(self, label: str, phase: str) -> None:
        """Say what a tenant is about to do."""
        with self._lock:
            self._rows[label].phase = phase

    def add_step(self, label: str, value: float) -> None:
        """Count a training step and the value to show for it."""
        with self._lock:
            row = self._rows[label]
            row.phase = "training"
            row.steps += 1
            row.recent.append(value)

    def finish(self) -> None:
        """End the display."""
        self._finished.set()

    def wait(self, timeout_s: float) -> bool:
        """Wait for the end; tell whether it has come."""
        return self._finished.wait(timeout_s)

    def table(self, seconds: float) -> list[str]:
        """Render one line a tenant, for a terminal."""
        with self._lock:
            rows = [
                (row.label, row.method, row.phase, str(row.steps), f"{row.unit} {row.value}")
                for row in self._rows.values()
            ]
        titles = (f"{seconds:4.0f} s", "method", "phase", "steps", "last ten")
        return align([titles, *rows])

    def line(self, seconds: float) -> str:
        """Render everything in one line, for a log."""
        with self._lock:
            shown = [
                f"{row.label} {row.steps} ({row.unit} {row.value})" for row in self._rows.values()
            ]
        return f"{seconds:4.0f} s  steps: " + ", ".join(shown)
