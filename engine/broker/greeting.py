"""Who may come in and stay: what a hello is answered with, and when a key ends."""

from ...client.errors import BadRequest, Busy, Conflict, Unauthorized, WeftError
from ...client.limits import limit
from ...client.messages import (
    SPOKEN_VERSIONS,
    Ack,
    Explain,
    Goodbye,
    Header,
    Heartbeat,
    Hello,
    Query,
    Resume,
    Welcome,
)
from .books import Books
from .events import ToClient
from .key_book import OPERATOR, Admission, KeyBook
from .sessions import Session

MAX_ITEMS = limit("metadata_items")
MAX_LENGTH = limit("metadata_length")
MAX_TAG = limit("name_length")  # all tags of a session fit into an answer beside its runs

_OPERATOR_ASKS = ("capabilities", "status", "metrics")


class Greeting:
    """Answers hellos: a session is opened, found again, or refused. Ends peers with their key."""

    def __init__(self, books: Books, keys: KeyBook, server: str) -> None:
        self._books = books
        self._keys = keys
        self._server = server

    def hello(self, peer: bytes, header: Hello) -> None:
        """A client says who it is."""
        books = self._books
        try:
            admission = self._admit(header)
            session = self._session_of(header, admission.tenant)
        except WeftError as error:
            self._refuse(peer, error.code, str(error))
            return
        books.sessions.connect(session, peer)
        session.admission = admission
        session.last_heard = session.last_sent = books.now
        welcome = Welcome(
            version=max(_common_versions(header)),
            session_id=session.session_id,
            server=self._server,
            models=books.workers.models(),
            limits=books.config.limits(),
            tenant=session.tenant,
        )
        books.actions.append(ToClient(peer, welcome))

    def keys_changed(self, keys: KeyBook) -> None:
        """Let in by these keys from now on, and nobody stay whom they would not let in."""
        self._keys = keys
        self.tick()

    def tick(self) -> None:
        """End the peers whose key has ended. Their sessions live on, for other keys of theirs."""
        books, now = self._books, self._wall_clock()
        for peer, session in list(books.sessions.by_peer.items()):
            if not self._keys.still_admits(session.admission, now):
                self._refuse(peer, "unauthorized", "the API key was revoked or replaced")
                books.sessions.disconnect(peer)

    def check_query(self, session: Session, query: Query) -> None:
        """Raise Unauthorized when a tenant among others asks for sums over all of them."""
        if query.what == "metrics" and session.tenant != OPERATOR and not self._keys.is_open:
            raise Unauthorized("metrics are for the operator's key")

    def _admit(self, header: Hello) -> Admission:
        """Whose key it is; raises what the hello deserves otherwise."""
        if not _common_versions(header):
            spoken = ", ".join(map(str, SPOKEN_VERSIONS))
            detail = f"the server speaks protocol {spoken}, the client {header.versions[:8]}"
            raise BadRequest(detail, "unsupported_version")
        admission = self._keys.admit(header.api_key, self._wall_clock())
        if admission is None:
            detail = "wrong, or was revoked" if header.api_key else "missing; pass api_key"
            raise Unauthorized(f"the API key is {detail}")
        return admission

    def _session_of(self, header: Hello, tenant: str) -> Session:
        """The session that a hello asks for; raises what the hello deserves otherwise."""
        if not _is_session_id(header.session_id):
            raise BadRequest("a session id is 32 hex digits")
        session = self._books.sessions.by_id.get(header.session_id)
        if session is not None and session.tenant == tenant:
            return session
        if header.must_exist:  # another tenant's is answered like one that never was
            raise Conflict(f"no session {header.session_id}", "session_expired")
        if session is not None or self._is_of_others(header.session_id, tenant):
            raise Conflict("the session id is taken")
        return self._open(header, tenant)

    def _is_of_others(self, session_id: str, tenant: str) -> bool:
        """Whether anything is left of another tenant's session of this id.

        Names of runs and files begin with it: who could open it again would meet those that exist.
        """
        books = self._books
        owners = {*books.catalog.owners(session_id), *books.past_sessions.owners(session_id)}
        runs = books.runs.values()
        owners |= {run.tenant for run in runs if run.run_id.startswith(session_id)}
        return bool(owners - {tenant})

    def _open(self, header: Hello, tenant: str) -> Session:
        books = self._books
        _check_texts(header)
        if books.is_stopping:
            raise WeftError("the server is shutting down", "stopping")
        if tenant != OPERATOR:  # who must be able to look when nobody else gets in
            if len(books.sessions) >= books.config.sessions:
                raise Busy(f"{len(books.sessions)} sessions are open")
            own = sum(session.tenant == tenant for session in books.sessions.by_id.values())
            if own >= books.config.tenant_sessions:
                raise Busy(f"{own} sessions of the tenant are open")
        session = books.sessions.open(header.session_id, tenant, books.now, header.user_metadata)
        session.display_name, session.tags = header.display_name, tuple(header.tags)
        fields = {"session_id": session.session_id, "client": header.client}
        books.metrics.sessions_opened += 1
        books.note("session_opened", tenant, fields)
        return session

    def _refuse(self, peer: bytes, code: str, detail: str) -> None:
        self._books.metrics.refuse(code)
        self._books.actions.append(ToClient(peer, self._books.failure(0, code, detail)))

    def _wall_clock(self) -> float:
        return self._books.now + self._books.wall_offset


def check_operator(header: Header) -> None:
    """Raise Unauthorized when the operator asks for what only a tenant may.

    It is whoever runs the server, and owns nothing: no run, no sampler, no file.
    """
    if isinstance(header, Ack | Explain | Goodbye | Heartbeat | Resume):
        return
    if not isinstance(header, Query) or header.what not in _OPERATOR_ASKS:
        asks = ", ".join(_OPERATOR_ASKS)
        raise Unauthorized(f"the operator's key is for queries of {asks} alone")


def _common_versions(header: Hello) -> list[int]:
    return [version for version in SPOKEN_VERSIONS if version in header.versions]


def _is_session_id(text: str) -> bool:
    return len(text) == 32 and all(letter in "0123456789abcdef" for letter in text)


def _check_texts(header: Hello) -> None:
    """Raise BadRequest when what a client says of itself is over a limit."""
    for name, entries in (("user_metadata", header.user_metadata), ("tags", header.tags)):
        if len(entries) > MAX_ITEMS:
            raise BadRequest(f"{name} has {len(entries)} entries, at most {MAX_ITEMS}")
    texts = {
        "user_metadata": ([*header.user_metadata, *header.user_metadata.values()], MAX_LENGTH),
        "tags": (header.tags, MAX_TAG),
        "display_name": ([header.display_name], MAX_LENGTH),
        "client": ([header.client], MAX_LENGTH),
    }
    for name, (values, most) in texts.items():
        longest = max(map(len, values), default=0)
        if longest > most:
            raise BadRequest(f"{name} holds {longest} characters, at most {most}")
