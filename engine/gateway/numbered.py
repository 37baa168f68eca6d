"""Commands under the SDK's numbers: each belongs to a run, and a refused one uses its number up."""

from dataclasses import dataclass

from ...client.errors import BadRequest, Busy
from ...client.limits import limit
from ...client.wire import Malformed
from .call import Call
from .names import request_number
from .session import Session

_MAX_WAITING = 2 * limit("unanswered")  # with numbers that are used up, for which nobody waits


@dataclass(frozen=True, slots=True)
class Place:
    """Where a command belongs."""

    session: Session
    run_id: str
    seq: int

    @property
    def number(self) -> int:
        """Of the request at the broker."""
        return request_number("command", self.run_id, self.seq)


class Numbered:
    """Finds the run of a command; uses its number up when what is inside refuses it.

    Args:
        call: whose body it is.
        found: run and number, None when they cannot be read.
    """

    def __init__(self, call: Call, found: tuple[str, int] | None) -> None:
        self._call = call
        self._found = found
        self._place: Place | None = None

    async def __aenter__(self) -> Place:
        if self._found is None:
            raise self._call.refusal or Malformed("the body names no model_id and seq_id")
        run_id, seq = self._found
        if not 1 <= seq < 2**31:
            raise BadRequest(f"seq_id is {seq}, not a number from 1 to {2**31 - 1}")
        self._call.fields["run_id"] = run_id[:80]
        session = await self._call.owner_of(run_id)
        if len(session.line) >= _MAX_WAITING:
            raise Busy(f"{len(session.line)} requests of the session wait for their answers")
        if self._call.refusal is not None:
            session.line.void(run_id, seq)
            raise self._call.refusal
        self._place = Place(session, run_id, seq)
        return self._place

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        place = self._place
        if isinstance(error, BadRequest) and place is not None:
            place.session.line.void(place.run_id, place.seq)  # leaves what an earlier post sent
