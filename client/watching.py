"""What a connection does for whoever waits for one of its requests."""

import time
from collections.abc import Callable
from concurrent import futures

from . import wire
from .actions import Outgoing
from .errors import Timeout
from .loop import Loop, Sink, nothing
from .messages import Cancel
from .waiting import Reason
from .waiting_line import WaitingLine


class RequestWatch:
    """The `Watch` of one request: the server is asked why it waits, and a terminal shows it; or
    it is asked to forget the request.
    """

    def __init__(self, loop: Loop, line: WaitingLine, request_id: int) -> None:
        self._loop = loop
        self._line = line
        self._request_id = request_id

    def begin(self, since: float, describe: Callable[[], str]) -> Callable[[], None]:
        self._loop.wait_began(self._request_id, since)
        key = self._line.begin(since, describe)

        def end() -> None:
            self._line.end(key)
            self._loop.wait_ended(self._request_id, since)

        return end

    def refresh(self) -> None:
        self._line.refresh()

    def cancel(self) -> "futures.Future[None]":
        self._loop.check_process()
        number = next(self._loop.request_ids)
        header = Cancel(request_id=number, target_id=self._request_id)
        message = (wire.encode(header),)
        outgoing = Outgoing(number, header.kind, (message,), cancels=self._request_id)
        sink = Sink(futures.Future(), nothing, None)
        self._loop.submit(outgoing, sink)
        return sink.source

    def explain(self, timeout: float) -> Reason | None:
        link = self._loop.link
        if link.state == "ready":
            asked = self._loop.explain((self._request_id,))
            try:
                asked.result(timeout)
            except futures.TimeoutError:
                raise Timeout(f"{link.address} has not said why within {timeout:g} s") from None
        return link.reason(self._request_id, time.monotonic())
