"""Streams of bytes to and from a server, in parts of which a few are on their way at a time."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np

from .actions import AnswerPart
from .answers import read_result
from .arrays import pack_arrays, unpack_arrays
from .errors import EngineFailed
from .file_messages import (
    CloseTransfer,
    FinishUpload,
    OpenDownload,
    OpenUpload,
    ReadPart,
    WritePart,
)
from .futures import APIFuture
from .limits import limit
from .session import Session
from .wire import digest_bytes

IN_FLIGHT = limit("parts_in_flight")


class Transfer:
    """An open upload or download; the server forgets it at the end of the `with` statement."""

    def __init__(self, session: Session, result: dict[str, Any]) -> None:
        self.session = session
        self.transfer_id: int = result["transfer_id"]
        self.part_bytes: int = result["part_bytes"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self.session.connection.is_closed:
            self.session.request(
                lambda number: CloseTransfer(request_id=number, transfer_id=self.transfer_id),
                read_result,
            )


class Download(Transfer):
    """Bytes that come, to be read in order; waits for the server."""

    def __init__(self, session: Session, make: Callable[[int], OpenDownload]) -> None:
        result = session.request(make, read_result).result()
        super().__init__(session, result)
        self.files: list[tuple[str, int]] = [(name, size) for name, size in result["files"]]
        self._parts = self._receive(sum(size for _, size in self.files))
        self._rest = memoryview(b"")

    def read(self, size: int) -> bytes:
        """The next bytes, as many as asked for unless it is the end."""
        found: list[memoryview] = []
        while size > 0:
            if not self._rest:
                self._rest = next(self._parts, memoryview(b""))
                if not self._rest:
                    break
            found.append(self._rest[:size])
            self._rest = self._rest[size:]
            size -= len(found[-1])
        return b"".join(found)

    def _receive(self, total: int) -> Iterator[memoryview]:
        asked: deque[APIFuture[memoryview]] = deque()
        for part, offset in enumerate(range(0, total, self.part_bytes)):
            if len(asked) == IN_FLIGHT:
                yield asked.popleft().result()
            asked.append(self._ask(part, min(self.part_bytes, total - offset)))
        while asked:
            yield asked.popleft().result()

    def _ask(self, part: int, size: int) -> APIFuture[memoryview]:
        def convert(answer: Sequence[AnswerPart]) -> memoryview:
            arrays = unpack_arrays(answer[0].reply.arrays, answer[0].frames)
            data = arrays["data"].data if "data" in arrays else memoryview(b"")
            if len(data) != size or digest_bytes(data) != read_result(answer)["digest"]:
                raise EngineFailed(f"part {part} of a download is damaged")
            return data

        return self.session.request(
            lambda number: ReadPart(request_id=number, transfer_id=self.transfer_id, part=part),
            convert,
        )


class Upload(Transfer):
    """Bytes that go; waits for the server."""

    def __init__(self, session: Session, make: Callable[[int], OpenUpload]) -> None:
        super().__init__(session, session.request(make, read_result).result())

    def send(self, read: Callable[[int], bytes]) -> dict[str, Any]:
        """Send what `read`, called with a number of bytes, gives until it gives none.

        Returns:
            What the server made of it.
        """
        sent: deque[APIFuture[dict[str, Any]]] = deque()
        part = 0
        while data := read(self.part_bytes):
            if len(sent) == IN_FLIGHT:
                sent.popleft().result()
            sent.append(self._write(part, data))
            part += 1
        while sent:
            sent.popleft().result()
        return self.session.request(
            lambda number: FinishUpload(request_id=number, transfer_id=self.transfer_id),
            read_result,
        ).result()

    def _write(self, part: int, data: bytes) -> APIFuture[dict[str, Any]]:
        arrays, frames = pack_arrays({"data": np.frombuffer(data, np.uint8)})
        connection = self.session.connection
        header = WritePart(
            request_id=connection.new_request_id(),
            transfer_id=self.transfer_id,
            part=part,
            digest=digest_bytes(data),
            arrays=arrays,
        )
        return connection.send([header], [frames], read_result)
