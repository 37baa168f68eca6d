"""The commands of one run on their way out: numbered, in order, until the run is closed."""

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

from .actions import AnswerPart
from .answers import read_forward_backward, read_result
from .batch import Part
from .errors import Disconnected, NotFound
from .futures import APIFuture
from .messages import CloseRun, Command, ForwardBackward, LoadState, SaveForSampler, Void
from .session import Session
from .types import ForwardBackwardOutput, LoadWeightsResponse

T = TypeVar("T")


class Commands:
    """Gives the commands of a run their numbers, without gaps, and sends them. For any thread.

    Every method that sends raises NotFound once the run is closed.
    """

    def __init__(self, session: Session, run_id: str, next_seq: int) -> None:
        self.run_id = run_id
        self.next_seq = next_seq
        self._session = session
        self._lock = threading.Lock()
        self._is_closed = False

    def send(
        self, make: Callable[[int, int], Command], convert: Callable[[Sequence[AnswerPart]], T]
    ) -> APIFuture[T]:
        """Send a command; `make` is given its request id and its number."""
        connection = self._session.connection
        with self._lock:
            self._check_open()
            header = make(connection.new_request_id(), self.next_seq)
            future = connection.send([header], [()], convert)
            self.next_seq += 1  # after what can raise: a number that is not sent blocks the next
        return future

    def send_call(
        self, parts: Sequence[Part], loss_fn: str, config: dict[str, float], *, forward_only: bool
    ) -> APIFuture[ForwardBackwardOutput]:
        """Send a forward_backward, or a forward."""
        with self._lock:
            future = self._send_parts(parts, loss_fn, config, forward_only, self.next_seq)
            self.next_seq += 1
        return future

    def send_forward_and_reserve(
        self, parts: Sequence[Part], loss_fn: str
    ) -> tuple[APIFuture[ForwardBackwardOutput], int]:
        """Send a forward, and keep the number after its own for a call that follows from it."""
        with self._lock:
            future = self._send_parts(parts, loss_fn, {}, True, self.next_seq)
            self.next_seq += 2
            return future, self.next_seq - 1

    def send_reserved(
        self, seq: int, parts: Sequence[Part], loss_fn: str
    ) -> APIFuture[ForwardBackwardOutput]:
        """Send a forward_backward under a reserved number."""
        with self._lock:
            return self._send_parts(parts, loss_fn, {}, False, seq)

    def send_freeze(
        self,
        name: str,
        sampler_id: str,
        convert: Callable[[Sequence[AnswerPart]], T],
        ttl_s: int = 0,
        metadata: dict[str, str] | None = None,
        is_external: bool = False,
    ) -> APIFuture[T]:
        """Keep the weights as they are now: in a file, for a sampler, or both."""
        return self.send(
            lambda number, seq: SaveForSampler(
                request_id=number,
                run_id=self.run_id,
                seq=seq,
                digest=b"",
                name=name,
                is_external=is_external,
                sampler_id=sampler_id,
                ttl_s=ttl_s,
                user_metadata=metadata or {},
            ),
            convert,
        )

    def send_load(self, path: str, with_optimizer: bool) -> APIFuture[LoadWeightsResponse]:
        """Replace the weights by those of a checkpoint."""
        return self.send(
            lambda number, seq: LoadState(
                request_id=number,
                run_id=self.run_id,
                seq=seq,
                digest=b"",
                path=path,
                with_optimizer=with_optimizer,
            ),
            lambda parts: LoadWeightsResponse(path=path),
        )

    def void(self, seq: int) -> None:
        """Give up a reserved number."""
        self._session.request(
            lambda number: Void(request_id=number, run_id=self.run_id, first_seq=seq, last_seq=seq),
            read_result,
        )

    def close(self) -> None:
        """Send nothing more, and give the run up. Does not wait; safe to repeat."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            with suppress(Disconnected):  # the session has ended, and takes its runs with it
                self._session.request(
                    lambda number: CloseRun(request_id=number, run_id=self.run_id), read_result
                )

    def _send_parts(
        self,
        parts: Sequence[Part],
        loss_fn: str,
        config: dict[str, float],
        forward_only: bool,
        seq: int,
    ) -> APIFuture[ForwardBackwardOutput]:
        self._check_open()
        connection = self._session.connection
        number = connection.new_request_id()
        headers = [
            ForwardBackward(
                request_id=number,
                run_id=self.run_id,
                seq=seq,
                digest=b"",
                part=index,
                num_parts=len(parts),
                num_datums=len(part.lengths),
                num_tokens=part.num_tokens,
                loss_fn=loss_fn,
                loss_fn_config=config,
                forward_only=forward_only,
                arrays=part.arrays,
            )
            for index, part in enumerate(parts)
        ]
        return connection.send(
            headers,
            [part.frames for part in parts],
            lambda answer: read_forward_backward(answer, parts),
        )

    def _check_open(self) -> None:
        if self._is_closed:
            raise NotFound(f"run {self.run_id!r} was closed")
