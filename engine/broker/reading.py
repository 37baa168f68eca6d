"""Received frames to events of the broker's core. Nothing a peer sends raises here."""

import logging
from collections.abc import Sequence
from typing import Any, cast

import msgpack
import zmq

from ...client.errors import BadRequest
from ...client.limits import limit
from ...client.wire import decode
from .events import ClientMessage, MalformedMessage, WorkerMessage

log = logging.getLogger(__name__)

RawFrame = bytes | zmq.Frame

COPY_BYTES = 4096  # shorter frames are cheaper copied than shared
_NOBLOCK = int(zmq.NOBLOCK)  # plain numbers: joining flags costs more than half a send
_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
_send = zmq.backend.Socket.send  # without the options of drafts: half the time
_MAX_HEADER_BYTES = limit("header_bytes")
_MAX_FRAMES = limit("frames") + 2  # beside the payload, the peer and the header


def receive(socket: "zmq.Socket[bytes]") -> list[RawFrame] | None:
    """Take the frames of one message, or None when there is none.

    Of a message with too many frames only the first ones are kept.
    """
    try:
        frame = socket.recv(_NOBLOCK, copy=False)
    except zmq.Again:
        return None
    frames: list[RawFrame] = [frame.bytes if len(frame) <= COPY_BYTES else frame]
    while frame.more:
        frame = socket.recv(copy=False)
        if len(frames) <= _MAX_FRAMES:
            frames.append(frame.bytes if len(frame) <= COPY_BYTES else frame)
    return frames


def read_client(frames: list[RawFrame]) -> ClientMessage | MalformedMessage:
    """Read a client's message: its peer, header and payload."""
    peer = cast(bytes, frames[0])
    if len(frames) < 2:
        return MalformedMessage(peer, "malformed", "a message without a header")
    raw = frames[1]
    if not isinstance(raw, bytes):
        raw = frames[1] = raw.bytes if len(raw) <= _MAX_HEADER_BYTES else b""
        if not raw:
            detail = f"a header of more than {_MAX_HEADER_BYTES} bytes"
            return MalformedMessage(peer, "too_large", detail)
    code, detail = "malformed", f"more than {_MAX_FRAMES - 2} frames"
    if len(frames) <= _MAX_FRAMES:
        try:
            header = decode(raw)
        except BadRequest as error:
            code, detail = error.code, str(error)
        else:
            del frames[0]
            return ClientMessage(peer, header, frames)
    return MalformedMessage(peer, code, detail, *_glimpse(raw))


def read_worker(frames: list[RawFrame]) -> WorkerMessage | None:
    """Read a worker's message: its peer, header, and an encoded reply with its payload."""
    peer = cast(bytes, frames[0])
    try:
        header = decode(_bytes(frames[1]) if len(frames) > 1 else b"")
    except BadRequest as error:
        log.error("a worker's message is left out: %s", error)
        return None
    del frames[:2]
    if frames:
        frames[0] = _bytes(frames[0])
    return WorkerMessage(peer, header, frames)


def _bytes(frame: RawFrame) -> bytes:
    return frame if isinstance(frame, bytes) else frame.bytes


def _glimpse(raw: bytes) -> tuple[int, str, int]:
    """Request id, run id and number of a header that is refused, as far as they can be read."""
    try:
        fields = msgpack.unpackb(raw, strict_map_key=False)
    except (ValueError, TypeError, RecursionError, OverflowError, msgpack.UnpackException):
        return 0, "", -1
    if not isinstance(fields, dict):
        return 0, "", -1
    request_id = _field(fields, "request_id", 0)
    run_id, seq = _field(fields, "run_id", ""), _field(fields, "seq", -1)
    return request_id, run_id, seq


def _field(fields: dict[Any, Any], name: str, otherwise: Any) -> Any:
    value = fields.get(name)
    is_fit = type(value) is type(otherwise) and not (type(value) is int and value >= 2**63)
    return value if is_fit else otherwise


def send(socket: "zmq.Socket[bytes]", peer: bytes, frames: Sequence[Any]) -> bool:
    """Send a message without ever waiting; False when the peer is gone or does not read."""
    try:
        _send(socket, peer, _MORE)
    except zmq.ZMQError as error:
        if error.errno in (zmq.EAGAIN, zmq.EHOSTUNREACH):
            return False
        raise
    # Once the first frame is taken the others are, or vanish with the peer.
    left = len(frames)
    for frame in frames:
        left -= 1
        _send(socket, frame, _MORE if left else _NOBLOCK, type(frame) is bytes)
    return True
