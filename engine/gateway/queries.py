"""The queries of the SDK's URLs, as closed records."""

from collections.abc import Mapping
from typing import Annotated, Literal, TypeVar

import msgspec

from ...client.wire import Malformed
from .bodies import Body
from .errors import Unserved

T = TypeVar("T", bound=Body)


class Scope(Body, kw_only=True):
    """Of one thing. Both scopes are the same here: what is public is reached by its path alone."""

    access_scope: Literal["owned", "accessible"] = "owned"


class Page(Scope, kw_only=True):
    """Of a list."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 20
    offset: Annotated[int, msgspec.Meta(ge=0)] = 0
    project_id: str = ""

    def __post_init__(self) -> None:
        if self.project_id:
            raise Unserved(
                f"project_id is {self.project_id[:80]!r}, and there are no projects", "project_id"
            )


def read_query(kind: type[T], query: Mapping[str, str]) -> T:
    """Read the query of a URL.

    Raises:
        Malformed: a parameter that the route does not take, or a value that it cannot be.
        Unserved: a parameter that is not served.
    """
    try:
        return msgspec.convert(dict(query), kind, strict=False)
    except msgspec.ValidationError as error:
        raise Malformed(f"the query of the URL: {error}") from None
