"""Compressed bodies, unpacked under a bound: what would become too large is refused on the way."""

from contextlib import suppress

import zstandard

from ...client.errors import BadRequest
from ...client.wire import Buffer, Malformed
from .errors import Unserved

# What one step of input can become at most: 4 bytes may say 128 kB, the largest block (RFC 8878,
# section 3.1.1.2). 256 bytes are 8 MB beyond the bound and cost 0.7 ms a MB of input.
_STEP = 256
_MAX_WINDOW = (
    8 << 20
)  # bytes that a frame may make its reader keep; RFC 9659 allows no more in HTTP
_MAX_FRAMES = 256


def decompress(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """Undo a `Content-Encoding`: "zstd", which the SDK can be told to use, or "" for none.

    Several frames in a row are one body.

    Raises:
        BadRequest: `too_large`, the result is over `max_bytes`, or there are too many frames; not
            more than 8 MB beyond the bound was unpacked.
        Malformed: it is damaged, ends inside a frame, or something else follows the last one.
        Unserved: another encoding.
    """
    if encoding not in ("", "identity", "zstd"):
        raise Unserved(
            f"the content encoding {encoding[:100]!r} is not served; zstd is", "encoding"
        )
    found = _unpack(body, max_bytes) if encoding == "zstd" else body
    if len(found) > max_bytes:
        raise _too_large(max_bytes)
    return found


def begin_of(body: bytes, encoding: str, num_bytes: int) -> bytes:
    """The first bytes of a body of which perhaps not all has come; never raises."""
    if encoding != "zstd":
        return body[:num_bytes]
    decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
    with suppress(zstandard.ZstdError), decompressor.stream_reader(body) as reader:
        return reader.read(num_bytes)
    return b""


def _unpack(body: bytes, max_bytes: int) -> bytes:
    rest, pieces, total = memoryview(body), list[bytes](), 0
    decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
    for _ in range(_MAX_FRAMES):
        frame = decompressor.decompressobj()
        while not frame.eof:
            if not rest:
                raise Malformed("the zstd body ends inside a frame")
            step, rest = rest[:_STEP], rest[_STEP:]
            pieces.append(_unpack_step(frame, step))
            total += len(pieces[-1])
            if total > max_bytes:
                raise _too_large(max_bytes)
        rest = memoryview(body)[len(body) - len(rest) - len(frame.unused_data) :]
        if not rest:
            return b"".join(pieces)
    raise BadRequest(f"a zstd body of more than {_MAX_FRAMES} frames", "too_large")


def _unpack_step(frame: "zstandard.ZstdDecompressionObj", step: Buffer) -> bytes:
    try:
        return frame.decompress(step)
    except zstandard.ZstdError as error:
        raise Malformed(f"the body is not zstd: {error}") from None


def _too_large(max_bytes: int) -> BadRequest:
    return BadRequest(f"the body unpacks to more than {max_bytes} bytes", "too_large")
