"""The wire format: as Google's library has it, and refusals of all that it lets pass."""

import random
import tracemalloc
from typing import Any

import pytest
from sdk_protobuf import message_class, names, random_message

from weft.client.errors import BadRequest
from weft.engine.gateway import schema
from weft.engine.gateway.protobuf import Message, decode, encode, peek

REQUEST = schema.FORWARD_BACKWARD_REQUEST
MESSAGES: dict[str, Message] = {
    value.name: value for value in vars(schema).values() if isinstance(value, Message)
}
MILLION = 1 << 20


def plain(message: Any) -> dict[str, Any]:
    """A message of Google's library as `decode` would give it."""
    return {field.name: _plain(field, value) for field, value in message.ListFields()}


def _plain(field: Any, value: Any) -> Any:
    entry = field.message_type
    if entry is not None and entry.GetOptions().map_entry:
        inner = entry.fields_by_name["value"].message_type
        return {key: plain(one) if inner else one for key, one in value.items()}
    if field.is_repeated:
        return [plain(one) if entry else one for one in value]
    return plain(value) if entry else value


@pytest.mark.parametrize("name", [name for name in names() if name in MESSAGES])
def test_messages_of_googles_library_are_read_as_they_were_meant(name: str) -> None:
    rng = random.Random(name)
    for _ in range(30):
        message = random_message(name, rng)
        assert decode(message.SerializeToString(), MESSAGES[name]) == plain(message)


@pytest.mark.parametrize("name", [name for name in names() if name in MESSAGES])
def test_googles_library_reads_what_is_written(name: str) -> None:
    rng = random.Random(name)
    for _ in range(30):
        message = random_message(name, rng)
        assert message_class(name).FromString(encode(MESSAGES[name], plain(message))) == message


def test_both_know_the_same_fields() -> None:
    for name, message in MESSAGES.items():
        if message is not schema.PASS_PLACE:
            known = {field.name: field.number for field in message_class(name).DESCRIPTOR.fields}
            assert {field.name: field.number for field in message.fields} == known


@pytest.mark.parametrize(
    ("body", "words"),
    [
        pytest.param(b"\x42\x00", "ForwardBackwardRequest has no field 8", id="unknown field"),
        pytest.param(b"\x00\x00", "no field 0", id="field 0"),
        pytest.param(b"\x0b\x0c", "group, field 1", id="group"),
        pytest.param(b"\x4b\x4c", "group, field 9", id="group of an unknown field"),
        pytest.param(b"\x0e\x00", "model_id .* has the wire type 6", id="wire type 6"),
        pytest.param(b"\x08\x01", r"model_id \(field 1\) has the wire type 0", id="wire type"),
        pytest.param(b"\x15\x00\x00\x00\x00", r"seq_id .* wire type 5", id="fixed32"),
        pytest.param(b"\x0a\x05ab", "ends inside field 1", id="short string"),
        pytest.param(b"\x0a", "ends inside", id="no length"),
        pytest.param(b"\x10\x80", "ends inside", id="short number"),
        pytest.param(b"\x0a" + b"\xff" * 9 + b"\x01", "ends inside field 1", id="length of 2**64"),
        pytest.param(b"\x10" + b"\x80" * 10 + b"\x01", "more than ten bytes", id="long number"),
        pytest.param(b"\x10" + b"\xff" * 9 + b"\x7f", "more than 64 bits", id="wide number"),
        pytest.param(b"\x10\x80\x80\x80\x80\x08", "seq_id is 2147483648", id="beyond int32"),
        pytest.param(b"\x0a\x01\xff", "model_id is not UTF-8", id="not UTF-8"),
        pytest.param(b"\x10\x01\x10\x01", r"seq_id \(field 2\) is there twice", id="twice"),
        pytest.param(b"\x2a\x00\x2a\x00", "loss_fn_config has '' twice", id="key twice"),
        pytest.param(b"\x1a\x02\x0a\x05\x0a\x03\x0a\x01\x00", "inside", id="beyond its message"),
        pytest.param(b"\x1a\x06\x0a\x04\x0a\x00\x1a\x00", "Chunk has both", id="two of a oneof"),
    ],
)
def test_what_is_not_of_the_schema_is_refused(body: bytes, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        decode(body, REQUEST)


def test_damage_is_a_refusal_and_nothing_else() -> None:
    rng = random.Random(0)
    refused = 0
    for _ in range(2000):
        body = bytearray(random_message("ForwardBackwardRequest", rng).SerializeToString())
        for _ in range(rng.randrange(1, 4) if body else 0):
            body[rng.randrange(len(body))] = rng.randrange(256)
        try:
            decode(bytes(body[: rng.randrange(len(body) + 1)]), REQUEST)
        except BadRequest:
            refused += 1
    assert refused > 500


def in_field(tag: bytes, body: bytes) -> bytes:
    size, head = len(body), bytearray(tag)
    while size > 0x7F:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes((*head, size)) + body


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"\x1a\x00" * 4 * MILLION, id="datums"),
        pytest.param(in_field(b"\x1a", b"\x0a\x00" * 4 * MILLION), id="chunks"),
        pytest.param(in_field(b"\x1a", b"\x1a\x00" * 4 * MILLION), id="spans"),
        pytest.param(in_field(b"\x1a", b"\x0a\x00" * 1000) * 1000, id="chunks of many datums"),
        pytest.param(
            in_field(
                b"\x1a", in_field(b"\x12", in_field(b"\x12", in_field(b"\x22", bytes(MILLION))))
            ),
            id="dimensions",
        ),
    ],
)
def test_millions_of_empty_pieces_end_at_a_limit(body: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(BadRequest, match="more than") as caught:
            decode(body, REQUEST)
        assert tracemalloc.get_traced_memory()[1] < 16 * MILLION
    finally:
        tracemalloc.stop()
    assert caught.value.code == "too_large"


def test_bytes_are_views_of_the_body() -> None:
    body = encode(schema.ENCODED_TEXT, {"tokens": bytes(8)})
    assert decode(body, schema.ENCODED_TEXT)["tokens"].obj is body


@pytest.mark.parametrize(
    ("body", "found"),
    [
        pytest.param(b"\x0a\x01m\x10\x05\x1a\x09", {"model_id": "m", "seq_id": 5}, id="cut off"),
        pytest.param(
            b"\x42\x00\x10\x05\x0a\x01m\x0b", {"model_id": "m", "seq_id": 5}, id="strange"
        ),
        pytest.param(b"\x0a\x01m\x10", {"model_id": "m"}, id="cut off early"),
        pytest.param(b"\xff\xff", {}, id="garbage"),
        pytest.param(b"", {}, id="empty"),
    ],
)
def test_the_beginning_of_a_damaged_message_can_be_peeked_at(
    body: bytes, found: dict[str, object]
) -> None:
    assert peek(body, schema.PASS_PLACE) == found


def test_the_bytes_of_a_result_are_golden() -> None:
    values = {
        "loss_fn_output_type": "ArrayRecord",
        "loss_fn_outputs": [
            {
                "type_tag": "ArrayRecord",
                "fields": {
                    "logprobs": {"data": b"\0\0\x80\xbf", "dtype": 1, "trailing_shape": [300]}
                },
                "num_datums": 1,
            }
        ],
        "metrics": {"loss:sum": 0.0},
    }
    assert encode(schema.FORWARD_BACKWARD_OUTPUT, values).hex() == (
        "0a0b41727261795265636f726412290a0b41727261795265636f726412180a086c6f6770726f6273120c"
        "0a04000080bf18012202ac0218011a130a086c6f73733a73756d110000000000000000"
    )
