"""What the parts of the broker's core share: its books, the time, and the actions to be taken."""

from collections import deque
from typing import Any

from ...client.errors import sentence
from ...client.messages import Event, Failure, Reply
from .catalog import Catalog
from .config import BrokerConfig
from .events import Action, Noted, ToClient
from .failures import Failures
from .leases import Phase, Run, Sampler, Workers
from .metrics import Metrics
from .past import Past, PastSampler, PastSession
from .sessions import Session, Sessions


class Books:
    """The state of one broker. Plain data; what it means is decided by those who share it."""

    def __init__(self, config: BrokerConfig) -> None:
        self.config = config
        self.now = 0.0  # monotonic seconds, of the event being handled
        self.wall_offset = 0.0  # to be added to `now` for seconds since the epoch
        self.actions: list[Action] = []  # of the event being handled
        self.sessions = Sessions()
        self.workers = Workers()
        self.runs: dict[str, Run] = {}
        self.ended_runs: deque[Run] = deque()  # still among `runs`, to say why they have ended
        self.samplers: dict[str, Sampler] = {}
        self.past_sessions: Past[PastSession] = Past(config.past_sessions)
        self.past_samplers: Past[PastSampler] = Past(config.past_samplers)
        self.catalog = Catalog()
        self.total_bytes = 0  # payload that waits, of all sessions
        self.is_stopping = False
        self.num_jobs = 0  # that the store has not done
        self.metrics = Metrics()
        self.failures = Failures()
        self.started = 0.0  # seconds since the epoch
        self.logs_requests = False
        self.stop_by = 0.0  # when nothing is waited for any more, while it stops

    def end_run(self, run: Run, phase: Phase, code: str, detail: str) -> None:
        """Serve no more commands of a run; they fail with this code and sentence."""
        run.phase, run.code, run.detail = phase, code, detail
        run.session.runs.discard(run.run_id)
        worker, run.worker = run.worker, None
        if worker is not None:
            worker.runs.pop(run.run_id, None)
        self.ended_runs.append(run)
        if len(self.ended_runs) > self.config.total_runs:
            self.runs.pop(self.ended_runs.popleft().run_id, None)
        name = "run_lost" if phase is Phase.LOST else "run_ended"
        ids = {"run_id": run.run_id, "session_id": run.session.session_id, "code": code}
        self.note(name, run.tenant, ids)

    def success(self, request_id: int, result: dict[str, Any]) -> Reply:
        """Build the broker's own answer to a request."""
        return Reply(request_id=request_id, result=result)

    def reply(self, session: Session, request_id: int, result: dict[str, Any]) -> None:
        """Answer a request that needs no memory."""
        if session.peer is not None:
            session.last_sent = self.now
            self.actions.append(ToClient(session.peer, self.success(request_id, result)))

    def refuse(self, session: Session, request_id: int, code: str, detail: str) -> None:
        """Answer a request with a failure that is not remembered."""
        if session.peer is not None:
            session.last_sent = self.now
            self.actions.append(ToClient(session.peer, self.failure(request_id, code, detail)))

    def failure(self, request_id: int, code: str, detail: str) -> Failure:
        """Build a failure; `busy` says when to come back."""
        retry_after_s = self.config.retry_after_s if code == "busy" else 0.0
        return Failure(
            request_id=request_id, code=code, detail=sentence(detail), retry_after_s=retry_after_s
        )

    @property
    def tells_requests(self) -> bool:
        """Whether anybody wants to hear of single requests."""
        return self.logs_requests or bool(self.sessions.watchers)

    def log(self, name: str, tenant: str, fields: dict[str, Any]) -> None:
        """Tell the log."""
        self.actions.append(Noted(name, tenant, fields))

    def note(self, name: str, tenant: str, fields: dict[str, Any]) -> None:
        """Tell the log and those who watch.

        A tenant sees its own events and those of the workers ("").
        """
        self.log(name, tenant, fields)
        for session in self.sessions.watchers:
            if session.peer is not None and tenant in ("", session.tenant):
                session.last_sent = self.now
                event = Event(name=name, fields=fields)
                self.actions.append(ToClient(session.peer, event))
