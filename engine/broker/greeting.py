"""Who may come in: what a client's hello is answered with, and which session it gets."""

from collections.abc import Callable

from ...client.errors import BadRequest, Busy, Conflict, WeftError
from ...client.limits import limit
from ...client.messages import SPOKEN_VERSIONS, Hello, Welcome
from .books import Books
from .events import ToClient
from .sessions import Session

MAX_ITEMS = limit("metadata_items")
MAX_LENGTH = limit("metadata_length")


class Greeting:
    """Answers hellos: a session is opened, found again, or refused."""

    def __init__(
        self, books: Books, tenant_of: Callable[[str], str | None], server: str = "weft"
    ) -> None:
        self._books = books
        self._tenant_of = tenant_of
        self._server = server

    def hello(self, peer: bytes, header: Hello) -> None:
        """A client says who it is."""
        try:
            session = self._session_of(header)
        except WeftError as error:
            failure = self._books.failure(0, error.code, str(error))
            self._books.actions.append(ToClient(peer, failure))
            return
        books = self._books
        books.sessions.connect(session, peer)
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

    def _session_of(self, header: Hello) -> Session:
        """The session that a hello asks for; raises what the hello deserves otherwise."""
        if not _common_versions(header):
            spoken = ", ".join(map(str, SPOKEN_VERSIONS))
            detail = f"the server speaks protocol {spoken}, the client {header.versions[:8]}"
            raise BadRequest(detail, "unsupported_version")
        tenant = self._tenant_of(header.api_key)
        if tenant is None:
            raise BadRequest("the API key is missing or wrong", "unauthorized")
        if not _is_session_id(header.session_id):
            raise BadRequest("a session id is 32 hex digits")
        session = self._books.sessions.by_id.get(header.session_id)
        if session is not None and session.tenant == tenant:
            return session
        if header.must_exist:  # another tenant's is answered like one that never was
            raise Conflict(f"no session {header.session_id}", "session_expired")
        if session is not None:
            raise Conflict("the session id is taken")
        return self._open(header, tenant)

    def _open(self, header: Hello, tenant: str) -> Session:
        books = self._books
        _check_texts(header)
        if books.is_stopping:
            raise WeftError("the server is shutting down", "stopping")
        if len(books.sessions) >= books.config.sessions:
            raise Busy(f"{len(books.sessions)} sessions are open")
        session = books.sessions.open(header.session_id, tenant, books.now, header.user_metadata)
        session.display_name, session.tags = header.display_name, tuple(header.tags)
        fields = {"session_id": session.session_id, "client": header.client}
        books.note("session_opened", tenant, fields)
        return session


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
        "user_metadata": [*header.user_metadata, *header.user_metadata.values()],
        "tags": header.tags,
        "display_name": [header.display_name],
    }
    for name, values in texts.items():
        longest = max(map(len, values), default=0)
        if longest > MAX_LENGTH:
            raise BadRequest(f"{name} holds {longest} characters, at most {MAX_LENGTH}")
