"""Clients' leases: who is connected as what, what each waits for, and what is kept for it."""

from collections import Counter, OrderedDict
from collections.abc import Mapping
from types import MappingProxyType

from .key_book import Admission
from .work import Work

MAX_EXPIRED = 4096  # requests remembered as expired, per session


class Session:
    """One client's lease. It outlives its connections."""

    __slots__ = (
        "admission",
        "display_name",
        "ending",
        "expired",
        "is_ended",
        "kept",
        "lane",
        "last_heard",
        "last_sent",
        "num_waiting",
        "opened",
        "peer",
        "requests",
        "result_bytes",
        "runs",
        "samplers",
        "session_id",
        "tags",
        "tenant",
        "usage",
        "user_metadata",
        "waiting_bytes",
    )

    def __init__(
        self,
        session_id: str,
        tenant: str,
        now: float,
        user_metadata: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.session_id = session_id
        self.tenant = tenant
        self.user_metadata = user_metadata  # what the client says of itself
        self.display_name = ""
        self.tags: tuple[str, ...] = ()
        self.lane = f"{tenant}/{session_id}"
        self.peer: bytes | None = None  # where it is connected
        self.admission = Admission(tenant)  # of the peer that is, or was, connected
        self.opened = now
        self.last_heard = now
        self.last_sent = now
        self.requests: dict[int, Work] = {}  # not yet forgotten, by request id
        self.num_waiting = 0  # requests held or queued
        self.waiting_bytes = 0  # their payload
        self.kept: OrderedDict[Work, float] = OrderedDict()  # finished; until when
        self.result_bytes = 0  # of what is kept
        self.expired: OrderedDict[int, None] = OrderedDict()  # ids that must not run again
        self.runs: set[str] = set()
        self.samplers: set[str] = set()
        self.usage: Counter[str] = Counter()
        self.is_ended = False
        self.ending = ""  # why, as the client said

    def expire(self, request_id: int) -> None:
        """Remember that a request was answered and its answer dropped."""
        self.expired[request_id] = None
        if len(self.expired) > MAX_EXPIRED:
            self.expired.popitem(last=False)


class Sessions:
    """All sessions, by id and by the peer that each is connected as."""

    def __init__(self) -> None:
        self.by_id: dict[str, Session] = {}
        self.by_peer: dict[bytes, Session] = {}
        self.watchers: set[Session] = set()

    def __len__(self) -> int:
        return len(self.by_id)

    def open(
        self, session_id: str, tenant: str, now: float, user_metadata: Mapping[str, str]
    ) -> Session:
        """Begin a session."""
        session = self.by_id[session_id] = Session(session_id, tenant, now, user_metadata)
        return session

    def connect(self, session: Session, peer: bytes) -> None:
        """Reach a session at this peer from now on, and nowhere else."""
        self.disconnect(peer)
        if session.peer is not None:
            self.by_peer.pop(session.peer, None)
        session.peer = peer
        self.by_peer[peer] = session

    def disconnect(self, peer: bytes) -> None:
        """Forget a peer; its session lives on."""
        session = self.by_peer.pop(peer, None)
        if session is not None:
            session.peer = None

    def close(self, session: Session) -> None:
        """End a session."""
        session.is_ended = True
        if session.peer is not None:
            self.disconnect(session.peer)
        del self.by_id[session.session_id]
        self.watchers.discard(session)

    def check_integrity(self) -> None:
        """Raise AssertionError when the books contradict each other."""
        for peer, session in self.by_peer.items():
            assert session.peer == peer
            assert self.by_id.get(session.session_id) is session
        for session in self.by_id.values():
            assert session.peer is None or self.by_peer.get(session.peer) is session
            assert session.result_bytes == sum(work.answer_bytes for work in session.kept)
            own = {work for work in session.requests.values() if work.session is session}
            assert session.num_waiting == sum(work.is_waiting for work in own)
            assert session.waiting_bytes == sum(work.reserved for work in own)
        assert self.watchers <= set(self.by_id.values())
