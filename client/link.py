"""What a connection decides: who is asked again, when, and what an answer means.

Pure: submissions, messages and the time go in, actions come out; `connection.py` has the socket.

    idle ──submit──► hello ──Welcome──► resume ──Known──► ready
                       ▲                                    │
                       └── silence, or "unknown_session" ◄──┘

Requests are kept until their answer is complete. After a reconnect the broker is asked which of
them it knows, and the others are sent again with the same ids.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from . import wire
from .actions import (
    Action,
    Answer,
    AnswerPart,
    Ask,
    Connect,
    Fail,
    Greeted,
    Happened,
    Lost,
    Outgoing,
    Send,
)
from .asking import Asking
from .errors import EngineFailed, WeftError, from_code
from .limits import LIMITS, limit
from .messages import (
    SPOKEN_VERSIONS,
    Ack,
    Event,
    Failure,
    Goodbye,
    Header,
    Heartbeat,
    Hello,
    Known,
    Reply,
    Resume,
    Welcome,
)
from .waiting import Reason
from .wire import Buffer

CLIENT = "weft-client/1"
_MAX_IDS = limit("request_ids")
_NEEDS_ROOM = ("create_run", "create_sampler", "fork_run", "watch")
_FIRST_ATTEMPT_S = 1.0
_FIRST_PAUSE_S = 0.1


@dataclass(slots=True)
class _Pending:
    request: Outgoing
    is_sent: bool = False
    parts: dict[int, AnswerPart] = field(default_factory=dict[int, AnswerPart])
    num_busy: int = 0
    busy_since: float = 0.0  # the first busy, when num_busy is above 0
    retry_at: float = 0.0  # while it waits because of busy
    is_withdrawn: bool = False  # the broker was asked to cancel it; it is not sent again
    detail: str = ""  # why it is busy
    reason: Reason | None = None  # why it waits, as the server said last

    def has_patience(self, now: float) -> bool:
        """Whether to try again after a busy. Only a void waits for ever: it frees its run."""
        if self.request.what == "void" or not self.num_busy:
            return True
        name = "room_s" if self.request.what in _NEEDS_ROOM else "admission_s"
        return now - self.busy_since < LIMITS[name].default


class Link:
    """The state of one connection.

    Args:
        hello: what is said first; its session stays the same for good.
        address: for messages to people.
        jitter: draws from [0, 1), to keep clients that lost one broker apart.
    """

    def __init__(
        self, hello: Hello, address: str, jitter: Callable[[], float] = random.random
    ) -> None:
        self.hello = hello
        self.address = address
        self.state = "idle"
        self.welcome: Welcome | None = None
        self.asking = Asking()
        self._jitter = jitter
        self._pending: dict[int, _Pending] = {}
        self._busy: dict[int, _Pending] = {}  # those of pending that have a time to be tried again
        self._acks: list[int] = []
        self._asking: list[list[int]] = []  # ids to ask for, one list a Resume; the first is sent
        self._lost_error: WeftError | None = None
        self._refusal = ""  # why the broker does not welcome this client
        self._heard_at = self._sent_at = 0.0
        self._silent_since = self._attempt_ends = 0.0
        self._num_attempts = 0

    # --- events -----------------------------------------------------------------------------------

    def submit(self, request: Outgoing, now: float) -> list[Action]:
        """Take a request over; its messages must not change any more."""
        if self._lost_error is not None:
            return [Fail(request.request_id, self._lost_error)]
        target = self._pending.get(request.cancels)
        if target is not None and target.is_sent:
            target.is_withdrawn = True
        elif target is not None:
            return [*self._withdraw(target), Answer(request.request_id, ())]
        elif request.cancels:
            detail = f"request {request.cancels} was answered before"
            return [Fail(request.request_id, from_code("too_late", detail))]
        pending = self._pending[request.request_id] = _Pending(request)
        if self.state == "idle":
            self._silent_since, self._num_attempts = now, 0
            return self._connect(now)
        return self._transmit(pending, now) if self.state == "ready" else []

    def receive(self, header: Header, frames: Sequence[Buffer], now: float) -> list[Action]:
        """Take a message of the broker."""
        if self.state == "idle":
            return []
        self._heard_at = now
        match header:
            case Welcome():
                return self._on_welcome(header, now)
            case Known():
                return self._on_known(header, now)
            case Reply():
                return self._on_reply(header, frames)
            case Failure():
                return self._on_failure(header, now)
            case Event():
                return [Happened(header)]
            case _:
                return []

    def tick(self, now: float) -> list[Action]:
        """Do what is due; to be called after every batch of events and at `deadline`."""
        if self.state == "idle":
            return []
        if self.state == "hello":
            return self._tick_hello(now)
        if now - self._heard_at >= LIMITS["liveness_s"].default:
            self._silent_since, self._num_attempts = now, 0
            return self._connect(now)
        actions: list[Action] = []
        while self._acks:
            ids, self._acks = self._acks[:_MAX_IDS], self._acks[_MAX_IDS:]
            actions.append(self._send(Ack(request_ids=ids), now))
        if self.state == "ready":
            due = [item for item in self._busy.values() if item.retry_at <= now]
            for pending in due:
                actions += self._transmit(pending, now)
            if asked := self.asking.ask(now):
                actions.append(Ask(tuple(asked)))
        if now - self._sent_at >= LIMITS["heartbeat_s"].default:
            actions.append(self._send(Heartbeat(), now))
        return actions

    def close(self, now: float, ending: str = "") -> list[Action]:
        """Say goodbye and, where there is something to say, why; fail what is left."""
        goodbye = Goodbye(ending=ending)
        farewell: list[Action] = [] if self.state == "idle" else [self._send(goodbye, now)]
        error = from_code("disconnected", f"the connection to {self.address} was closed")
        return farewell + self._give_up(error, for_good=True)[:-1]  # the socket is still needed

    # --- what others may ask ----------------------------------------------------------------------

    def deadline(self) -> float | None:
        """When `tick` has something to do if nothing else happens; None: never."""
        if self.state == "idle":
            return None
        if self.state == "hello":
            return min(self._attempt_ends, self._patience_ends())
        due = min(
            self._heard_at + LIMITS["liveness_s"].default,
            self._sent_at + LIMITS["heartbeat_s"].default,
        )
        if self.state == "ready":
            asked = self.asking.deadline()
            asked = due if asked is None else asked
            return min([due, asked, *(pending.retry_at for pending in self._busy.values())])
        return due

    def explained(self, reasons: Mapping[int, Reason]) -> None:
        """Take what the server says of requests that wait."""
        for request_id, reason in reasons.items():
            pending = self._pending.get(request_id)
            if pending is not None and pending.is_sent and reason.code != "unknown":
                pending.reason = reason

    def reason(self, request_id: int, now: float) -> Reason | None:
        """Why a request waits, as far as it is known here; None when it does not wait.

        May be called from any thread.
        """
        pending = self._pending.get(request_id)
        if pending is None:
            return None
        if self.state != "ready":
            return self._unconnected(now)
        if not pending.is_sent:
            left = max(0.0, pending.retry_at - now)
            times = f"{pending.num_busy} time{'s' if pending.num_busy > 1 else ''}"
            detail = f"{pending.detail}; it is sent again in {left:.1f} s, refused {times} so far"
            return Reason(code="paused", detail=detail, retry_s=left)
        sent = f"it was sent to {self.address} and is not answered yet"
        return pending.reason or Reason(code="sent", detail=sent)

    def describe(self, request_id: int, now: float) -> str:
        """What a request waits for, in words; "" when it does not wait."""
        pending, reason = self._pending.get(request_id), self.reason(request_id, now)
        return (
            "" if pending is None or reason is None else f"{pending.request.what}: {reason.detail}"
        )

    # --- the stages of a connection ---------------------------------------------------------------

    def _connect(self, now: float) -> list[Action]:
        self.state = "hello"
        self._asking = []
        pause = min(_FIRST_ATTEMPT_S * 2**self._num_attempts, 10.0)
        self._num_attempts += 1
        self._attempt_ends = now + pause * (1 + 0.25 * self._jitter())
        return [Connect(), self._send(self.hello, now)]

    def _tick_hello(self, now: float) -> list[Action]:
        if now >= self._patience_ends():
            seconds = f"{now - self._silent_since:.0f} s"
            if self._refusal:
                text = f"{self.address} took no new session for {seconds}: {self._refusal}"
            else:
                text = (
                    f"no answer from {self.address} within {seconds}; is a server running there? "
                    "`weft serve` starts one"
                )
            error = from_code("disconnected", text)
            return self._give_up(error, for_good=self.welcome is not None)
        return self._connect(now) if now >= self._attempt_ends else []

    def _unconnected(self, now: float) -> Reason:
        """Why nothing can be sent or answered."""
        if self.state == "resume":
            detail = f"{self.address} is reached again, and asked what it knows"
            return Reason(code="reconnecting", detail=detail)
        silent = f"{max(0.0, now - self._silent_since):.0f} s"
        if self._refusal:
            detail = f"{self.address} has taken no session for {silent}: {self._refusal}"
        elif self.welcome is None:
            detail = f"{self.address} has not answered for {silent}; is a server running there?"
        else:
            detail = f"{self.address} was lost {silent} ago, and is tried again"
        return Reason(code="connecting" if self.welcome is None else "reconnecting", detail=detail)

    def _patience_ends(self) -> float:
        name = "connect_s" if self.welcome is None else "reconnect_s"
        return self._silent_since + LIMITS[name].default

    def _on_welcome(self, welcome: Welcome, now: float) -> list[Action]:
        if self.state != "hello":
            return []
        if welcome.version not in SPOKEN_VERSIONS:
            return self._give_up(
                from_code(
                    "unsupported_version",
                    f"{self.address} speaks version {welcome.version}, this client "
                    f"{', '.join(map(str, SPOKEN_VERSIONS))}",
                ),
                for_good=True,
            )
        self.welcome = welcome
        self._refusal = ""
        self.state = "resume"
        sent = [key for key, pending in self._pending.items() if pending.is_sent]
        self._asking = [sent[i : i + _MAX_IDS] for i in range(0, len(sent), _MAX_IDS)]
        return [Greeted(welcome), *self._ask(now)]

    def _ask(self, now: float) -> list[Action]:
        if self._asking:
            return [self._send(Resume(request_ids=self._asking[0]), now)]
        self.state = "ready"
        actions: list[Action] = []
        for pending in list(self._pending.values()):
            if not pending.is_sent and pending.request.request_id not in self._busy:
                actions += self._transmit(pending, now)
        return actions

    def _on_known(self, known: Known, now: float) -> list[Action]:
        if self.state != "resume" or not self._asking:
            return []
        actions: list[Action] = []
        known_ids = set(known.request_ids)
        for request_id in self._asking.pop(0):
            pending = self._pending.get(request_id)
            if pending is not None and request_id not in known_ids:
                pending.is_sent = False
                pending.parts.clear()
                if pending.is_withdrawn:
                    actions += self._withdraw(pending)
        return actions + self._ask(now)

    def _withdraw(self, pending: _Pending) -> list[Action]:
        """Fail a request that the broker does not have."""
        request_id = pending.request.request_id
        error = from_code("cancelled", "it was withdrawn before the server had taken it")
        return self._finish(request_id, Fail(request_id, error, is_unsent=True))

    def _give_up(self, error: WeftError, for_good: bool) -> list[Action]:
        self.state = "idle"
        self._acks.clear()
        failed: list[Action] = [
            Fail(request_id, error, is_unsent=not for_good) for request_id in self._pending
        ]
        self._pending.clear()
        self._busy.clear()
        if for_good:
            self._lost_error = error
        return [*failed, Lost(error)]

    # --- answers ----------------------------------------------------------------------------------

    def _on_reply(self, reply: Reply, frames: Sequence[Buffer]) -> list[Action]:
        pending = self._pending.get(reply.request_id)
        if pending is None:
            self._acks.append(reply.request_id)
            return []
        expected = {part.reply.num_parts for part in pending.parts.values()} or {reply.num_parts}
        if (
            expected != {reply.num_parts}
            or not 0 <= reply.part < reply.num_parts <= LIMITS["parts"].default
        ):
            return self._finish(
                reply.request_id,
                Fail(
                    reply.request_id,
                    EngineFailed(f"part {reply.part} of {reply.num_parts} in an answer"),
                ),
            )
        pending.parts[reply.part] = AnswerPart(reply, tuple(frames))
        if len(pending.parts) < reply.num_parts:
            return []
        parts = tuple(pending.parts[index] for index in range(reply.num_parts))
        return self._finish(reply.request_id, Answer(reply.request_id, parts))

    def _on_failure(self, failure: Failure, now: float) -> list[Action]:
        if failure.code == "unknown_session":
            if self.state == "hello":
                return []  # of a message sent before the hello
            self._silent_since, self._num_attempts = now, 0
            return self._connect(now)
        if failure.request_id == 0:
            if failure.code in ("busy", "stopping"):
                self._refusal = failure.detail
                return []  # the hello is repeated, or the silence noticed
            return self._give_up(from_code(failure.code, failure.detail), for_good=True)
        pending = self._pending.get(failure.request_id)
        if pending is None:
            self._acks.append(failure.request_id)
            return []
        is_unsent = failure.code == "busy" and failure.retry_after_s > 0
        if is_unsent and pending.is_withdrawn:
            return self._withdraw(pending)
        if is_unsent and pending.has_patience(now):
            pending.busy_since = pending.busy_since if pending.num_busy else now
            pause = min(_FIRST_PAUSE_S * 2**pending.num_busy, LIMITS["busy_pause_s"].default)
            pending.num_busy += 1
            pending.is_sent = False
            pending.detail = failure.detail
            pending.retry_at = now + max(failure.retry_after_s, pause) * (1 + 0.25 * self._jitter())
            self._busy[failure.request_id] = pending
            return []
        error = from_code(failure.code, failure.detail)
        return self._finish(failure.request_id, Fail(failure.request_id, error, is_unsent))

    def _finish(self, request_id: int, action: Action) -> list[Action]:
        del self._pending[request_id]
        self._busy.pop(request_id, None)
        self._acks.append(request_id)
        return [action]

    def _transmit(self, pending: _Pending, now: float) -> list[Action]:
        pending.is_sent = True
        self._busy.pop(pending.request.request_id, None)
        pending.parts.clear()
        pending.reason = None
        self._sent_at = now
        return [Send(message) for message in pending.request.messages]

    def _send(self, header: Header, now: float) -> Send:
        self._sent_at = now
        return Send((wire.encode(header),))
