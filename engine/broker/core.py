"""The broker's decisions as one state machine: events in, actions out; no socket, clock or thread.

    core = BrokerCore(BrokerConfig())
    for action in core.handle(ClientMessage(peer, header, frames), now):
        ...  # ToClient, ToWorker, Persist, Finished

`handle` must be told of every message, of the passing of time (`Tick`) and of the journal's
progress (`Persisted`). Order within a run is `run_log`'s, fairness `lanes`', placement and credit
`dispatching`'s, memory of answers `answers`'. This file knows what each message asks for.
"""

from collections.abc import Callable
from hmac import compare_digest
from typing import Any

from ...client.errors import BadRequest, Busy, WeftError
from ...client.file_messages import ReadPart, WritePart
from ...client.limits import limit
from ...client.messages import (
    SPOKEN_VERSIONS,
    Ack,
    Cancel,
    CloseRun,
    CloseSampler,
    CreateRun,
    CreateSampler,
    Explain,
    ForkRun,
    ForwardBackward,
    Goodbye,
    Header,
    Heartbeat,
    Hello,
    Known,
    LoadState,
    OptimStep,
    Query,
    Request,
    Resume,
    Sample,
    SaveForSampler,
    SaveState,
    Void,
    Watch,
)
from ...client.worker_messages import (
    Done,
    Failed,
    Stop,
    Underway,
    WorkerCounters,
    WorkerHello,
    WorkerProgress,
    WorkerReady,
)
from .accepting import Accepting
from .answers import Answers
from .books import Books
from .config import BrokerConfig
from .dispatching import Dispatcher
from .events import (
    Action,
    CatalogLoaded,
    ClientGone,
    ClientMessage,
    Event,
    KeysChanged,
    MalformedMessage,
    NoWorker,
    Persisted,
    StopRequested,
    StoreDone,
    Tick,
    ToClient,
    ToWorker,
    WorkerAwaited,
    WorkerGone,
    WorkerMessage,
    WorkerUnreachable,
)
from .explaining import MAX_DETAIL, explain
from .filing import Filing
from .greeting import Greeting, check_operator
from .key_book import OPERATOR, KeyBook
from .leases import Phase, Worker
from .outcomes import Outcomes
from .past import PastSession
from .queries import Queries
from .sessions import Session
from .stopping import Stopping
from .work import State

MAX_ENDING = limit("metadata_length")
MAX_EXPLAINED = limit("explained_ids")

_COMMANDS = (CreateRun, ForwardBackward, OptimStep, SaveState, LoadState, SaveForSampler, ForkRun)


class BrokerCore:
    """One broker. See `check_integrity` for what always holds."""

    def __init__(
        self,
        config: BrokerConfig,
        *,
        server: str = "weft",
        secret: str = "",
        keys: KeyBook | None = None,
        wall_offset: float = 0.0,
        started: float = 0.0,
        logs_requests: bool = False,
    ) -> None:
        """
        Args:
            config: limits and times.
            server: name and version, for clients.
            secret: what workers must show; "" admits any.
            keys: whose an API key is; None: whoever comes is the tenant `local`.
            wall_offset: to be added to the `now` of events for seconds since the epoch.
            started: seconds since the epoch at its start.
            logs_requests: tell the log of single requests, too.
        """
        self._config = config
        self._secret = secret
        self._books = Books(config)
        self._books.wall_offset = wall_offset
        self._books.started = started
        self._books.logs_requests = logs_requests
        self._greeting = Greeting(self._books, keys or KeyBook(), server)
        self._answers = Answers(self._books)
        self._outcomes = Outcomes(self._books, self._answers)
        self._dispatcher = Dispatcher(self._books, self._answers, self._outcomes)
        self._accepting = Accepting(self._books, self._answers, self._outcomes, self._dispatcher)
        self._filing = Filing(self._books, self._answers)
        self._queries = Queries(self._books)
        self._stopping = Stopping(self._books, self._answers, self._outcomes, self._dispatcher)
        self._on_event: dict[type, Callable[[Any], None]] = {
            ClientMessage: self._client_message,
            WorkerMessage: self._worker_message,
            Persisted: lambda event: self._answers.persisted(event.number),
            Tick: self._tick,
            MalformedMessage: self._malformed,
            ClientGone: lambda event: self._books.sessions.disconnect(event.peer),
            WorkerGone: self._worker_gone,
            WorkerUnreachable: self._worker_unreachable,
            WorkerAwaited: self._worker_awaited,
            NoWorker: self._no_worker,
            CatalogLoaded: self._catalog_loaded,
            StoreDone: self._filing.done,
            KeysChanged: lambda event: self._greeting.keys_changed(event.keys),
            StopRequested: lambda event: self._stopping.request(),
        }
        accepting = self._accepting
        self._on_client: dict[type, Callable[[Session, ClientMessage, Any], None]] = {
            **dict.fromkeys(_COMMANDS, accepting.command),
            Sample: accepting.sample,
            Ack: self._ack,
            Heartbeat: lambda session, message, header: None,
            Void: accepting.void,
            CreateSampler: accepting.create_sampler,
            CloseSampler: accepting.close_sampler,
            CloseRun: accepting.close_run,
            Cancel: accepting.cancel,
            Query: self._query,
            Explain: self._explain,
            Watch: self._watch,
            Resume: self._resume,
            Goodbye: self._goodbye,
            **self._filing.on_client,
        }

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take one event at monotonic time `now`; the actions are to be taken in their order."""
        books = self._books
        books.now = now
        self._on_event[type(event)](event)
        ready = self._outcomes.ready
        while ready:
            self._dispatcher.submit(ready.popleft())
        self._stopping.proceed()
        actions, books.actions = books.actions, []
        return actions

    @property
    def is_finished(self) -> bool:
        """Whether it has stopped."""
        return self._stopping.is_finished

    def check_integrity(self) -> None:
        """Raise AssertionError when the books contradict each other."""
        books = self._books
        books.sessions.check_integrity()
        books.workers.check_integrity()
        self._answers.check_integrity()
        self._dispatcher.check_integrity()
        self._filing.check_integrity()
        for run in books.runs.values():
            run.log.check_integrity()
            due = run.log.commands.get(run.log.next_seq)
            is_whole = due is not None and due.state is State.HELD and not due.missing
            is_stuck = is_whole and run.log.awaited is None
            assert not (
                is_stuck and (run.phase is Phase.OPEN or (due is not None and due.seq == 0))
            )
            assert not (run.code and run.log.held())
            assert run.code or run.worker is not None or not run.session.is_ended
            if run.forked_from and run.phase is Phase.OPENING:
                forks = books.runs[run.forked_from].log.commands.values()
                assert any(work.fork is run and not work.is_over for work in forks)
        for sampler in books.samplers.values():
            assert sampler.sampler_id in sampler.session.samplers
            assert not sampler.session.is_ended

    # Clients.

    def _client_message(self, message: ClientMessage) -> None:
        header = message.header
        session = self._books.sessions.by_peer.get(message.peer)
        if type(header) is Hello:
            self._greeting.hello(message.peer, header)
            return
        if session is None:
            detail = "this connection has not said hello"
            self._tell(message.peer, _request_id(header), "unknown_session", detail)
            return
        session.last_heard = self._books.now
        handler = self._on_client.get(type(header))
        if handler is None:
            detail = f"a client does not send {header.kind!r}"
            self._tell(message.peer, 0, "malformed", detail)
            return
        try:
            if session.tenant == OPERATOR:
                check_operator(header)
            handler(session, message, header)
        except WeftError as error:
            self._refused(session, header, error.code)
            self._books.refuse(session, _request_id(header), error.code, str(error))
        else:
            if self._is_answered_at_once(session, header):
                self._books.metrics.outcome(header.kind, "")

    def _refused(self, session: Session, header: Header, code: str) -> None:
        """Count a request that is refused and not remembered, and tell the log."""
        books = self._books
        books.metrics.outcome(header.kind, code)
        ids = {"kind": header.kind, "request_id": _request_id(header), "lane": session.lane}
        books.failures.add(code, session.tenant, ids)
        if books.logs_requests:
            books.log("refused", session.tenant, {**ids, "code": code})

    def _is_answered_at_once(self, session: Session, header: Header) -> bool:
        """Whether a request that was not refused is not remembered, and the store has none of it."""
        is_remembered = not isinstance(header, Request) or header.request_id in session.requests
        return not is_remembered and not isinstance(header, ReadPart | WritePart)

    def _ack(self, session: Session, message: ClientMessage, header: Ack) -> None:
        self._answers.acknowledge(session, header.request_ids)

    def _resume(self, session: Session, message: ClientMessage, header: Resume) -> None:
        works = [(i, session.requests.get(i)) for i in dict.fromkeys(header.request_ids)]
        whole = [(i, work) for i, work in works if work is not None and work.has_arrived]
        known = Known(request_ids=[request_id for request_id, _ in whole])
        self._books.actions.append(ToClient(message.peer, known))
        for request_id, work in whole:
            if work.state is State.FINISHED:
                self._answers.deliver(session, request_id, work)

    def _query(self, session: Session, message: ClientMessage, header: Query) -> None:
        self._greeting.check_query(session, header)
        self._books.reply(session, header.request_id, self._queries.answer(session, header))

    def _explain(self, session: Session, message: ClientMessage, header: Explain) -> None:
        if len(header.request_ids) > MAX_EXPLAINED:
            detail = f"explain of {len(header.request_ids)} requests, at most {MAX_EXPLAINED}"
            raise BadRequest(detail, "too_large")
        reasons = [explain(self._books, session, number) for number in header.request_ids]
        fields = [reason.to_fields() for reason in reasons]
        self._books.reply(session, header.request_id, {"reasons": fields})

    def _watch(self, session: Session, message: ClientMessage, header: Watch) -> None:
        watchers = self._books.sessions.watchers
        if header.enabled and len(watchers) >= self._config.watchers and session not in watchers:
            raise Busy(f"{len(watchers)} clients watch already")
        (watchers.add if header.enabled else watchers.discard)(session)
        self._books.reply(session, header.request_id, {})

    def _goodbye(self, session: Session, message: ClientMessage, header: Goodbye) -> None:
        session.ending = header.ending[:MAX_ENDING]
        self._end_session(session, "cancelled", "its session ended")

    def _malformed(self, event: MalformedMessage) -> None:
        session = self._books.sessions.by_peer.get(event.peer)
        self._tell(event.peer, event.request_id, event.code, event.detail)
        if session is not None:
            session.last_heard = self._books.now
            self._accepting.malformed(session, event.run_id, event.seq)

    def _end_session(self, session: Session, code: str, detail: str) -> None:
        self._dispatcher.end_session_work(session, code, detail)
        runs = [self._books.runs[run_id] for run_id in session.runs]
        self._books.sessions.close(session)
        past = PastSession.of(session, self._books.wall_offset)
        self._books.past_sessions.add(session.tenant, session.session_id, past)
        self._answers.close(session)
        self._filing.end_session(session)
        for run in runs:
            self._outcomes.fail_held(run, code, detail)
            run.log.use_up()
            self._outcomes.release(run)
            if run.phase is Phase.OPENING and run.log.next_seq == 0:
                self._outcomes.never_created(run, detail)
        self._dispatcher.limit_expired()
        fields = {"session_id": session.session_id, "detail": detail}
        self._books.note("session_ended", session.tenant, fields)

    def _tell(self, peer: bytes, request_id: int, code: str, detail: str) -> None:
        self._books.metrics.refuse(code)
        failure = self._books.failure(request_id, code, detail)
        self._books.actions.append(ToClient(peer, failure))

    # Workers.

    def _worker_message(self, message: WorkerMessage) -> None:
        header = message.header
        worker = self._books.workers.by_peer.get(message.peer)
        kind = type(header)
        if worker is None:
            if isinstance(header, WorkerHello):
                self._worker_hello(message.peer, header)
            else:  # its leases are gone, or it never had any
                self._books.actions.append(ToWorker(message.peer, Stop()))
            return
        worker.last_heard = self._books.now
        if kind is Done:
            self._dispatcher.done(worker, header, message.frames)  # type: ignore[arg-type]
        elif isinstance(header, Failed):
            self._dispatcher.failed(worker, header)
        elif isinstance(header, Underway):
            self._dispatcher.underway(worker, header)
        elif isinstance(header, WorkerCounters):
            worker.counters = header
        elif isinstance(header, WorkerProgress):
            worker.phase, worker.fraction = header.phase, header.fraction
            fields = {"phase": header.phase, "fraction": header.fraction}
            self._books.note("worker_progress", "", {"worker_id": worker.worker_id, **fields})
        elif isinstance(header, WorkerReady):
            self._dispatcher.ready(worker, header)

    def _worker_hello(self, peer: bytes, header: WorkerHello) -> None:
        workers = self._books.workers
        if not compare_digest(header.secret.encode(), self._secret.encode()):
            self._refuse_worker(peer, "unauthorized", "the worker's secret is wrong")
            return
        if not set(header.versions) & set(SPOKEN_VERSIONS):
            self._refuse_worker(peer, "unsupported_version", "no protocol version in common")
            return
        known = workers.by_id.get(header.worker_id)
        if known is not None:
            self._dispatcher.lose(known, "it has connected anew")
        quantum = self._config.quantum
        workers.ended = ""
        workers.add(Worker(header.worker_id, peer, header.pid, quantum, self._books.now))
        self._books.note("worker_loading", "", {"worker_id": header.worker_id})

    def _refuse_worker(self, peer: bytes, code: str, detail: str) -> None:
        self._books.actions.append(ToWorker(peer, self._books.failure(0, code, detail)))

    def _worker_gone(self, event: WorkerGone) -> None:
        worker = self._books.workers.by_id.get(event.worker_id)
        if worker is not None:
            self._dispatcher.lose(worker, event.detail)

    def _worker_unreachable(self, event: WorkerUnreachable) -> None:
        worker = self._books.workers.by_peer.get(event.peer)
        if worker is not None:
            self._dispatcher.lose(worker, "it cannot be reached")

    def _worker_awaited(self, event: WorkerAwaited) -> None:
        self._books.workers.awaited = event.detail[:MAX_DETAIL]
        self._books.note("worker_awaited", "", {"detail": event.detail})

    def _no_worker(self, event: NoWorker) -> None:
        self._books.workers.awaited, self._books.workers.ended = "", event.detail
        self._books.note("no_worker", "", {"detail": event.detail})
        self._dispatcher.place_waiting()

    def _catalog_loaded(self, event: CatalogLoaded) -> None:
        for checkpoint in event.checkpoints:
            self._books.catalog.add(checkpoint)

    # Time.

    def _tick(self, event: Tick) -> None:
        books, config = self._books, self._config
        if event.wall_offset is not None:
            books.wall_offset = event.wall_offset
        self._answers.expire()
        self._filing.tick()
        for tenant, fields in books.failures.take():
            books.log("failures", tenant, fields)
        self._greeting.tick()
        for session in list(books.sessions.by_id.values()):
            if books.now - session.last_heard > config.session_ttl_s:
                detail = f"the session was silent for {config.session_ttl_s:g} s"
                self._end_session(session, "session_expired", detail)
            elif session.peer and books.now - session.last_sent >= config.heartbeat_s:
                session.last_sent = books.now
                books.actions.append(ToClient(session.peer, Heartbeat()))
        for worker in list(books.workers):
            is_loading = worker.model is None
            expiry_s = config.loading_expiry_s if is_loading else config.worker_expiry_s
            if books.now - worker.last_heard > expiry_s:
                self._dispatcher.lose(worker, f"it was silent for {expiry_s:g} s")
            elif books.now - worker.last_sent >= config.heartbeat_s:
                worker.last_sent = books.now
                books.actions.append(ToWorker(worker.peer, Heartbeat()))


def _request_id(header: Header) -> int:
    return header.request_id if isinstance(header, Request) else 0
