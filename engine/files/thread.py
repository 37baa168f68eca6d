"""The store's thread: jobs in order, one at a time, away from the thread that decides."""

import logging
import queue
import threading
from collections.abc import Callable

from ...client.errors import WeftError, sentence
from .job_runner import JobRunner
from .jobs import Job, JobResult
from .store import CheckpointFiles

log = logging.getLogger(__name__)

STOP_S = 30.0  # for the jobs that are left at the end


class StoreThread:
    """Carries out jobs and says how they went.

    Args:
        files: the directory; None refuses every job.
        on_done: called in the thread with a job's number and result.
    """

    def __init__(
        self, files: CheckpointFiles | None, on_done: Callable[[int, JobResult], None]
    ) -> None:
        self._runner = None if files is None else JobRunner(files)
        self._on_done = on_done
        self._jobs: queue.SimpleQueue[tuple[int, Job] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="weft-store", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def submit(self, number: int, job: Job) -> None:
        """Queue a job."""
        self._jobs.put((number, job))

    def stop(self) -> None:
        """Do what is queued, and end."""
        if self._thread.ident is not None:
            self._jobs.put(None)
            self._thread.join(STOP_S)

    def _run(self) -> None:
        while (item := self._jobs.get()) is not None:
            number, job = item
            self._on_done(number, self._carry_out(job))
        if self._runner is not None:
            self._runner.close()

    def _carry_out(self, job: Job) -> JobResult:
        if self._runner is None:
            return JobResult(code="not_found", detail="this server keeps no files")
        try:
            return self._runner.carry_out(job)
        except WeftError as error:
            return JobResult(code=error.code, detail=sentence(error))
        except Exception as error:  # the boundary to the disk: the next job may go well
            log.exception("%s failed", type(job).__name__)
            return JobResult(code="internal", detail=sentence(f"{type(error).__name__}: {error}"))
