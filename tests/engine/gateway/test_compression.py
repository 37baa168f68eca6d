"""Compressed bodies: what is sound is unpacked, bombs and damage are refused."""

import gzip
import random
import tracemalloc

import pytest
import zstandard

from weft.client.errors import BadRequest
from weft.engine.gateway.compression import decompress
from weft.engine.gateway.errors import Unserved

TEXT = random.Random(0).randbytes(3000) * 3
FRAME = zstandard.compress(TEXT)
MEGA = 1 << 20


def streamed(data: bytes) -> bytes:
    """A frame that does not say its size."""
    packer = zstandard.ZstdCompressor(write_checksum=True).compressobj()
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize(
    ("body", "found"),
    [
        pytest.param(FRAME, TEXT, id="one frame"),
        pytest.param(streamed(TEXT), TEXT, id="unknown size"),
        pytest.param(FRAME + streamed(b"x") + FRAME, TEXT + b"x" + TEXT, id="frames"),
        pytest.param(zstandard.compress(b""), b"", id="nothing"),
    ],
)
def test_zstd_is_unpacked(body: bytes, found: bytes) -> None:
    assert decompress(body, "zstd", len(found)) == found


@pytest.mark.parametrize("encoding", ["", "identity"])
def test_what_is_not_packed_is_left_alone(encoding: str) -> None:
    assert decompress(TEXT, encoding, len(TEXT)) is TEXT


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(FRAME[:-1], id="cut off"),
        pytest.param(FRAME + b"x", id="something behind"),
        pytest.param(FRAME + FRAME[:5], id="half a second frame"),
        pytest.param(b"", id="empty"),
        pytest.param(b"not zstd at all", id="something else"),
        pytest.param(streamed(TEXT)[:-1] + b"x", id="wrong checksum"),
    ],
)
def test_damage_is_malformed(body: bytes) -> None:
    with pytest.raises(BadRequest) as caught:
        decompress(body, "zstd", MEGA)
    assert caught.value.code == "malformed"


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(zstandard.compress(bytes(256 * MEGA)), id="bomb"),
        pytest.param(streamed(bytes(256 * MEGA)), id="bomb of unknown size"),
        pytest.param(zstandard.compress(bytes(MEGA)) * 64, id="bomb of frames"),
    ],
)
def test_a_bomb_is_refused_before_it_is_unpacked(body: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(BadRequest, match="more than 1048576 bytes") as caught:
            decompress(body, "zstd", MEGA)
        assert tracemalloc.get_traced_memory()[1] < 24 * MEGA
    finally:
        tracemalloc.stop()
    assert caught.value.code == "too_large"


@pytest.mark.parametrize(("encoding", "body"), [("zstd", zstandard.compress(TEXT)), ("", TEXT)])
def test_the_bound_is_exact(encoding: str, body: bytes) -> None:
    with pytest.raises(BadRequest, match="more than 8999 bytes"):
        decompress(body, encoding, len(TEXT) - 1)


def test_frames_without_end_are_refused() -> None:
    with pytest.raises(BadRequest, match="more than 256 frames"):
        decompress(zstandard.compress(b"x") * 257, "zstd", MEGA)


def test_a_frame_cannot_ask_for_a_large_window() -> None:
    params = zstandard.ZstdCompressionParameters(window_log=27, enable_ldm=True)
    packer = zstandard.ZstdCompressor(compression_params=params).compressobj()
    body = packer.compress(TEXT) + packer.flush()
    with pytest.raises(BadRequest, match="too much memory"):
        decompress(body, "zstd", MEGA)


@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd, zstd"])
def test_other_encodings_are_refused_by_name(encoding: str) -> None:
    with pytest.raises(Unserved, match=encoding):
        decompress(gzip.compress(TEXT), encoding, MEGA)
