"""One tenant's checkpoints in order of time."""

from bisect import bisect_left, insort

from ..files.checkpoint import Checkpoint


class Shelf:
    """Keeps the order while checkpoints come and go, so that a page of a long list costs little."""

    def __init__(self) -> None:
        self.checkpoints: list[Checkpoint] = []  # oldest first
        self.by_run: dict[str, list[Checkpoint]] = {}  # of each run that has any, oldest first
        self.runs: list[tuple[float, str]] = []  # time of a run's newest and its id, sorted

    def add(self, run_id: str, checkpoint: Checkpoint) -> None:
        """Enter a checkpoint whose path is free."""
        self._strike(run_id)
        for order in (self.checkpoints, self.by_run.setdefault(run_id, [])):
            insort(order, checkpoint, key=_age)
        self._enter(run_id)

    def remove(self, run_id: str, checkpoint: Checkpoint) -> None:
        """Strike a checkpoint off."""
        self._strike(run_id)
        for order in (self.checkpoints, self.by_run[run_id]):
            del order[bisect_left(order, _age(checkpoint), key=_age)]
        if self.by_run[run_id]:
            self._enter(run_id)
        else:
            del self.by_run[run_id]

    def _strike(self, run_id: str) -> None:
        if run_id in self.by_run:
            del self.runs[bisect_left(self.runs, (self.by_run[run_id][-1].created, run_id))]

    def _enter(self, run_id: str) -> None:
        insort(self.runs, (self.by_run[run_id][-1].created, run_id))


def _age(checkpoint: Checkpoint) -> tuple[float, str]:
    return checkpoint.created, checkpoint.path
