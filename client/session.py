"""What the clients made by one `ServiceClient` share: connection, numbering, model cards."""

from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from types import NoneType
from typing import Any, TypeVar

import zmq

from .actions import AnswerPart
from .answers import read_result
from .arguments import require_type, shown
from .connection import Connection, shared_connection
from .errors import BadRequest, NotFound
from .futures import APIFuture
from .limits import limit
from .messages import ModelCard, Query, Request
from .model_cards import find_card
from .paths import format_run_id, format_sampler_id

T = TypeVar("T")

_MAX_ITEMS = limit("metadata_items")
_MAX_LENGTH = limit("metadata_length")


class Session:
    """A connection, and how it is asked and pickled."""

    def __init__(self, connection: Connection, api_key: str) -> None:
        self.connection = connection
        self._api_key = api_key

    @classmethod
    def open(
        cls,
        address: str,
        api_key: str,
        user_metadata: Mapping[str, str] | None = None,
        context: "zmq.Context[Any] | None" = None,
        *,
        display_name: str = "",
        show_waiting: bool = False,
    ) -> "Session":
        """A session of its own."""
        require_key(api_key)
        require_type("display_name", display_name, str, "a string")
        if len(display_name) > _MAX_LENGTH:
            detail = f"display_name has {len(display_name)} characters, at most {_MAX_LENGTH}"
            raise BadRequest(detail)
        connection = Connection(
            address,
            api_key,
            user_metadata=check_metadata(user_metadata),
            display_name=display_name,
            context=context,
            show_waiting=show_waiting,
        )
        return cls(connection, api_key)

    def new_run_id(self) -> str:
        return format_run_id(self.connection.session_id, next(self.connection.run_numbers))

    def new_sampler_id(self) -> str:
        return format_sampler_id(self.connection.session_id, next(self.connection.sampler_numbers))

    def request(
        self, make: Callable[[int], Request], convert: Callable[[Sequence[AnswerPart]], T]
    ) -> APIFuture[T]:
        """Send a request without arrays; `make` is given its number."""
        return self.connection.send([make(self.connection.new_request_id())], [()], convert)

    def query(
        self, what: str, subject: str = "", offset: int = 0, limit: int = 0
    ) -> APIFuture[dict[str, Any]]:
        """Ask for something in the broker's books; of a list, for one page."""
        return self.request(
            lambda number: Query(
                request_id=number, what=what, subject=subject, offset=offset, limit=limit
            ),
            read_result,
        )

    def query_pages(
        self, what: str, subject: str = "", offset: int = 0, limit: int = 0
    ) -> APIFuture[list[dict[str, Any]]]:
        """A list in the broker's books, page after page: so many entries, or all when 0."""
        found: list[dict[str, Any]] = []
        target: futures.Future[list[dict[str, Any]]] = futures.Future()
        target.set_running_or_notify_cancel()

        def arrive(page: "futures.Future[dict[str, Any]]") -> None:
            try:
                found.append(page.result())
                following = found[-1].get("next", -1)
                left = limit - (following - offset)
                if following >= 0 and (left > 0 or not limit):
                    more = self.query(what, subject, following, left if limit else 0)
                    more.future().add_done_callback(arrive)
                else:
                    target.set_result(found)
            except BaseException as error:
                target.set_exception(error)

        first = self.query(what, subject, offset, limit)
        first.future().add_done_callback(arrive)
        return first.derived(target, lambda: first.waiting_for or f"query: more {what} follow")

    def find_card(self, base_model: str) -> ModelCard:
        """The card of a model by name or alias; waits for the server.

        Raises:
            NotFound: the server has no such model; the message lists what it has.
        """
        welcome = self.connection.welcome()
        cards = [] if welcome is None else welcome.models
        found = find_card(cards, base_model)
        if found is None:
            cards = read_cards(self.query("capabilities").result())
            found = find_card(cards, base_model)
        if found is None:
            names = ", ".join(card.name for card in cards) or "no model yet"
            raise NotFound(f"unknown model {base_model!r}; the server has {names}")
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        address = self.connection.address
        if address.startswith("inproc://"):
            raise BadRequest("a client of an engine in this process cannot be pickled")
        return (_restore, (address, self._api_key))


def _restore(address: str, api_key: str) -> Session:
    return Session(shared_connection(address, api_key), api_key)


def read_cards(result: Mapping[str, Any]) -> list[ModelCard]:
    """The model cards of an answer to the query `capabilities`."""
    return [ModelCard(**card) for card in result["models"]]


def require_key(api_key: object) -> None:
    """Refuse what no API key can be, without showing it.

    Raises:
        BadRequest: it is no string of letters that can be sent, or a long one.
    """
    if not isinstance(api_key, str):
        raise BadRequest(f"api_key is of type {type(api_key).__name__}, not a string")
    if len(api_key) > _MAX_LENGTH or not api_key.isascii() or not api_key.isprintable():
        raise BadRequest(f"api_key is not up to {_MAX_LENGTH} printable ASCII characters")


def check_metadata(metadata: Mapping[str, str] | None) -> dict[str, str]:
    """Return user metadata that is small enough and consists of strings.

    Raises:
        BadRequest: it is not.
    """
    require_type("user_metadata", metadata, (Mapping, NoneType), "a mapping")
    checked = dict(metadata or {})
    if len(checked) > _MAX_ITEMS:
        raise BadRequest(f"user_metadata has {len(checked)} entries, at most {_MAX_ITEMS}")
    for key, value in checked.items():
        for text in (key, value):
            if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise BadRequest(f"user_metadata[{key!r}] is not a string")
            if len(text) > _MAX_LENGTH:
                raise BadRequest(
                    f"user_metadata holds {len(text)} characters, at most {_MAX_LENGTH}"
                )
    return checked


def refuse_unserved(**options: object) -> None:
    """Refuse options of the official SDK that this server does not honour.

    Raises:
        BadRequest: `not_served`, naming the first option that is not None, 0 or False.
    """
    for name, value in options.items():
        if value is not None and value is not False and value != 0:
            raise BadRequest(f"{name} is not served (it is {shown(value)})", "not_served")
