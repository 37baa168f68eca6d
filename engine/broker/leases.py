"""What workers hold: runs, samplers and dispatched work, under credit."""

from collections import deque
from collections.abc import Iterator
from enum import Enum
from math import inf
from typing import Any

from ...client.messages import CreateRun, CreateSampler, ModelCard
from ...client.worker_messages import SiteSpan, WorkerCounters
from .events import Frames
from .lanes import Lanes
from .run_log import RunLog
from .sessions import Session
from .work import Work

MAX_FAILED_CALLS = 4


class Phase(Enum):
    """The life of a run or sampler."""

    OPENING = "opening"
    OPEN = "open"
    LOST = "lost"
    CLOSED = "closed"


class Run:
    """One training run: its order, its place, and what is known about it."""

    __slots__ = (
        "code",
        "detail",
        "epoch",
        "failed_calls",
        "forked_from",
        "header",
        "info",
        "lane",
        "last_used",
        "log",
        "phase",
        "run_id",
        "session",
        "tenant",
        "worker",
    )

    def __init__(self, session: Session, header: CreateRun) -> None:
        self.run_id = header.run_id
        self.tenant = session.tenant
        self.session = session  # that keeps it; when ended, the tenant's other sessions may go on
        self.lane = session.lane
        self.header = header  # of a fork: what would have made it anew
        self.forked_from = ""  # the run that it began as a copy of
        self.log = RunLog()
        self.last_used = 0.0  # when its last command came
        self.worker: Worker | None = None
        self.epoch = 0  # of its lease
        self.phase = Phase.OPENING
        self.info: dict[str, Any] = {}  # the worker's answer to create_run or fork_run
        # Numbers of the latest forward_backwards that failed since an optimizer step, and why.
        self.failed_calls: deque[tuple[int, str]] = deque(maxlen=MAX_FAILED_CALLS)
        self.code = ""  # why later commands fail, once lost or closed
        self.detail = ""


class Sampler:
    """Something to sample from, on one worker. What a path or base model gives can be reopened."""

    __slots__ = (
        "base_model",
        "create",
        "detail",
        "model_path",
        "num_pending",
        "phase",
        "run_id",
        "sampler_id",
        "saved",
        "session",
        "tenant",
        "waiting",
        "worker",
    )

    def __init__(self, sampler_id: str, session: Session) -> None:
        self.sampler_id = sampler_id
        self.session = session
        self.tenant = session.tenant
        self.base_model = ""
        self.model_path = ""
        self.saved = 0.0  # when the checkpoint was made that it was opened from
        self.run_id = ""
        self.worker: Worker | None = None
        self.phase = Phase.OPENING
        self.detail = ""  # why it is lost
        self.create: tuple[CreateSampler, Frames] | None = None  # to open it on another worker
        self.waiting: list[Work] = []  # samples, while it opens
        self.num_pending = 0  # samples accepted and unfinished


class Window:
    """Credit for one kind of work on one worker, and the lanes that fill it."""

    __slots__ = ("credit", "lanes", "outstanding")

    def __init__(self, quantum: int) -> None:
        self.lanes: Lanes[Work] = Lanes(quantum)
        self.credit = 0
        self.outstanding = 0  # weighted tokens dispatched and unfinished

    def takes_at_once(self, weight: int) -> bool:
        """Take credit for a request that nobody waits before, if there is enough."""
        if self.lanes.size or (self.outstanding and self.outstanding + weight > self.credit):
            return False
        self.outstanding += weight
        return True

    def next(self) -> Work | None:
        """Take what is next in fair order if the credit has room; anything fits an idle worker."""
        if not self.lanes.size:
            return None
        room = self.credit - self.outstanding if self.outstanding else inf
        work = self.lanes.pop(room) if room > 0 else None
        if work is not None:
            self.outstanding += work.weight
        return work


class Worker:
    """One worker and all that it holds."""

    __slots__ = (
        "counters",
        "dispatched",
        "fraction",
        "last_heard",
        "last_sent",
        "model",
        "peer",
        "phase",
        "pid",
        "runs",
        "sample",
        "samplers",
        "sites",
        "train",
        "worker_id",
    )

    def __init__(self, worker_id: str, peer: bytes, pid: int, quantum: int, now: float) -> None:
        self.worker_id = worker_id
        self.peer = peer
        self.pid = pid
        self.model: ModelCard | None = None  # once it is ready
        self.sites: list[SiteSpan] = []  # where an adapter can sit, then
        self.phase = "starting"  # of loading, before that
        self.fraction = -1.0  # of the phase, -1 when it is not known
        self.train = Window(quantum)
        self.sample = Window(quantum)
        self.dispatched: dict[int, Work] = {}
        self.runs: dict[str, Run] = {}
        self.samplers: dict[str, Sampler] = {}
        self.counters: WorkerCounters | None = None  # as it last told
        self.last_heard = now
        self.last_sent = now

    def serves(self, model: str) -> bool:
        """Whether it is ready and its base model goes by this name."""
        return self.model is not None and (model == self.model.name or model in self.model.aliases)

    def load(self) -> tuple[int, int]:
        """What orders workers for placement: the runs and samplers it holds, then what waits."""
        waiting = sum(w.outstanding + w.lanes.weight for w in (self.train, self.sample))
        return len(self.runs) + len(self.samplers), waiting


class Workers:
    """All workers that have said hello and live."""

    def __init__(self) -> None:
        self.by_id: dict[str, Worker] = {}
        self.by_peer: dict[bytes, Worker] = {}
        self.awaited = ""  # why a worker is started again, until one is ready
        self.ended = ""  # why no worker will come, until one does

    def __iter__(self) -> Iterator[Worker]:
        return iter(self.by_id.values())

    def add(self, worker: Worker) -> None:
        """Enter a worker whose id is free."""
        self.by_id[worker.worker_id] = worker
        self.by_peer[worker.peer] = worker

    def remove(self, worker: Worker) -> None:
        """Strike a worker off."""
        del self.by_id[worker.worker_id]
        del self.by_peer[worker.peer]

    def place(self, model: str) -> Worker | None:
        """The least loaded worker that is ready and serves this base model."""
        fit = [worker for worker in self.by_id.values() if worker.serves(model)]
        return min(fit, key=Worker.load, default=None)

    def are_loading(self) -> bool:
        """Whether a worker may yet become ready that is not."""
        if not self.by_id:
            return not self.ended
        return any(worker.model is None for worker in self.by_id.values())

    def models(self) -> list[ModelCard]:
        """The base models that are served, each once."""
        cards = {worker.model.name: worker.model for worker in self.by_id.values() if worker.model}
        return [cards[name] for name in sorted(cards)]

    def check_integrity(self) -> None:
        """Raise AssertionError when the books contradict each other."""
        assert len(self.by_id) == len(self.by_peer)
        for worker in self.by_id.values():
            assert self.by_peer.get(worker.peer) is worker
            for window in (worker.train, worker.sample):
                window.lanes.check_integrity()
                held = [work for work in worker.dispatched.values() if work.window is window]
                assert window.outstanding == sum(work.weight for work in held)
                assert all(work.window is window for work in window.lanes)
                assert window.outstanding or not window.lanes.size  # nothing waits for nothing
            assert all(run.worker is worker for run in worker.runs.values())
            assert all(sampler.worker is worker for sampler in worker.samplers.values())
