"""When a connection asks the server why its requests wait. Pure: what waits and the time go in."""

from .limits import LIMITS, limit

_MAX_IDS = limit("explained_ids")


class Asking:
    """Asks about what somebody has waited for long enough, and again every so often.

    One question goes out for all of it, none while an answer is due, and none when nobody waits.
    """

    def __init__(self) -> None:
        self._waits: dict[int, list[float]] = {}  # request to when each of its waits began
        self._not_before = 0.0  # of the next question
        self._is_due = False  # an answer

    def began(self, request_id: int, since: float) -> None:
        """Somebody has waited for a request since then."""
        self._waits.setdefault(request_id, []).append(since)

    def ended(self, request_id: int, since: float) -> None:
        """A wait that had begun then is over."""
        waits = self._waits.get(request_id, [])
        if since in waits:
            waits.remove(since)
        if not waits:
            self._waits.pop(request_id, None)

    def answered(self) -> None:
        """The question was answered, or failed."""
        self._is_due = False

    def ask(self, now: float) -> list[int]:
        """The requests to ask about now, those waited for longest first; [] for none yet."""
        deadline = self.deadline()
        if deadline is None or now < deadline:
            return []
        period = LIMITS["explain_s"].default
        begun = sorted((min(waits), number) for number, waits in self._waits.items())
        self._is_due, self._not_before = True, now + period
        return [number for since, number in begun if since + period <= now][:_MAX_IDS]

    def deadline(self) -> float | None:
        """When `ask` has something to ask if nothing else happens; None: not of itself."""
        if self._is_due or not self._waits:
            return None
        first = min(min(waits) for waits in self._waits.values())
        return max(first + LIMITS["explain_s"].default, self._not_before)
