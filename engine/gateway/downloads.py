"""Files of a checkpoint as streams: fetched from the broker part by part, under addresses of their
own that need no key, as the SDK's command line expects.

    GET /files/<token>/adapter_model.safetensors
    GET /files/<token>/archive.tar
"""

import asyncio
import secrets
import tarfile
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from functools import partial

from ...client.answers import read_result
from ...client.arrays import unpack_arrays
from ...client.errors import EngineFailed, NotFound, WeftError
from ...client.file_messages import CloseTransfer, OpenDownload, ReadPart
from ...client.limits import limit
from ...client.wire import digest_bytes
from .doors import Door
from .line import Parts

LINK_TTL_S = 3600.0
ARCHIVE = "archive.tar"
_MAX_LINKS = 4096
_IN_FLIGHT = limit("parts_in_flight")
_BLOCK = 512  # of a tar
_OPEN_S = 20.0  # how long a download may wait for its turn


@dataclass(frozen=True, slots=True)
class FileLink:
    """What a token gives access to."""

    key: str = field(repr=False)  # whose it is, as long as that counts
    path: str  # weft://
    until: float  # seconds since the epoch


class FileLinks:
    """Tokens that were given out, each for the files of one checkpoint."""

    def __init__(self) -> None:
        self._links: OrderedDict[str, FileLink] = OrderedDict()

    def make(self, door: Door, path: str) -> tuple[str, float]:
        """A token, and until when it is good."""
        now = time.time()
        while self._links and next(iter(self._links.values())).until < now:
            self._links.popitem(last=False)
        if len(self._links) >= _MAX_LINKS:
            del self._links[self._spare()]
        token, until = secrets.token_urlsafe(32), now + LINK_TTL_S
        self._links[token] = FileLink(door.key, path, until)
        return token, until

    def find(self, token: str) -> FileLink:
        """What a token stands for; raises NotFound."""
        link = self._links.get(token)
        if link is None or link.until < time.time():
            raise no_file()
        return link

    def _spare(self) -> str:
        """The oldest token of the key that has most, so that nobody's many end those of others."""
        held = Counter(link.key for link in self._links.values())
        ((most, _),) = held.most_common(1)
        return next(token for token, link in self._links.items() if link.key == most)


class Download:
    """An open transfer of the files of a checkpoint."""

    def __init__(self, door: Door, result: dict[str, object]) -> None:
        self._line = door.line
        self._transfer_id = int(str(result["transfer_id"]))
        self._part_bytes = int(str(result["part_bytes"]))
        found: list[tuple[str, int]] = result["files"]  # type: ignore[assignment]
        self.files = dict(found)
        self._total = sum(self.files.values())

    @classmethod
    async def open(cls, door: Door, path: str) -> "Download":
        """Open the files of a checkpoint as an adapter in PEFT's form.

        Raises:
            NotFound: there is no such checkpoint of the caller's.
            WeftError: `timeout`, all transfers there may be are taken.
        """
        line = door.line
        header = OpenDownload(request_id=line.new_number(), path=path, form="peft")
        asked = asyncio.create_task(line.request(header))
        try:
            async with asyncio.timeout(_OPEN_S):
                return cls(door, await asyncio.shield(asked))
        except BaseException as error:
            asked.add_done_callback(partial(_close_late, door))
            if isinstance(error, TimeoutError):
                raise WeftError(f"it could not be opened in {_OPEN_S:.0f} s", "timeout") from None
            raise

    def close(self) -> None:
        """Let the broker forget it; does not wait."""
        header = CloseTransfer(request_id=self._line.new_number(), transfer_id=self._transfer_id)
        self._line.send([header], [()])

    async def read(self, name: str) -> AsyncGenerator[bytes | memoryview]:
        """The bytes of one file, a few parts on their way at a time."""
        start = 0
        for other, size in self.files.items():
            if other == name:
                break
            start += size
        else:
            raise NotFound(f"no file {name[:80]!r} in this checkpoint")
        end = start + self.files[name]
        waiting = deque(range(start // self._part_bytes, -(-end // self._part_bytes)))
        sent = deque((part, self._ask(part)) for part in _take(waiting, _IN_FLIGHT))
        while sent:
            part, answer = sent.popleft()
            data = self._data(part, await answer)
            for following in _take(waiting, 1):
                sent.append((following, self._ask(following)))
            first = part * self._part_bytes
            yield data[max(start - first, 0) : end - first]

    def _ask(self, part: int) -> "asyncio.Future[Parts]":
        header = ReadPart(
            request_id=self._line.new_number(), transfer_id=self._transfer_id, part=part
        )
        return self._line.send([header], [()])

    def _data(self, part: int, answer: Parts) -> memoryview:
        arrays = unpack_arrays(answer[0].reply.arrays, answer[0].frames)
        data = arrays["data"].data if "data" in arrays else memoryview(b"")
        size = min(self._part_bytes, self._total - part * self._part_bytes)
        if len(data) != size or digest_bytes(data) != read_result(answer)["digest"]:
            raise EngineFailed(f"part {part} of a download is damaged")
        return data


def _close_late(door: Door, asked: "asyncio.Task[dict[str, object]]") -> None:
    """Close what was opened for somebody who has gone."""
    if not asked.cancelled() and asked.exception() is None:
        Download(door, asked.result()).close()


def no_file() -> NotFound:
    """What all tokens are answered that are good for nothing."""
    return NotFound("no such file, or its address is no longer good")


def _take(waiting: "deque[int]", count: int) -> list[int]:
    return [waiting.popleft() for _ in range(min(count, len(waiting)))]


class Archive:
    """A tar of all files of a checkpoint, and an empty one that says that it is complete."""

    def __init__(self, download: Download) -> None:
        self._download = download
        self._sizes = {**download.files, "checkpoint_complete": 0}

    @property
    def num_bytes(self) -> int:
        """Bytes of the whole tar."""
        files = sum(_BLOCK + -(-size // _BLOCK) * _BLOCK for size in self._sizes.values())
        return files + 2 * _BLOCK

    async def read(self) -> AsyncGenerator[bytes | memoryview]:
        """The tar, piece by piece."""
        for name, size in self._sizes.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = size, int(time.time())
            yield info.tobuf(tarfile.USTAR_FORMAT)
            if size:
                async for piece in self._download.read(name):
                    yield piece
            yield bytes(-size % _BLOCK)
        yield bytes(2 * _BLOCK)
