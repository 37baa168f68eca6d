"""Headers survive a round trip, malformed bytes are refused by name, and the bytes do not change."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import msgpack
import pytest
from examples_of_headers import EXAMPLES

from weft.client import wire
from weft.client.errors import BadRequest
from weft.client.messages import Header, OptimStep, Reply, Resume

GOLDEN = Path(__file__).parent / "golden" / "v1.json"
HEARTBEAT = {"kind": "heartbeat"}
RESUME = {"kind": "resume", "request_ids": [1, 2]}


def step(request_id: int = 7, digest: bytes = b"", learning_rate: float = 0.1) -> OptimStep:
    return OptimStep(
        request_id=request_id,
        run_id="r",
        seq=1,
        digest=digest,
        learning_rate=learning_rate,
        beta1=0.9,
        beta2=0.95,
        eps=1e-12,
        weight_decay=0.0,
        grad_clip_norm=0.0,
    )


def nested(depth: int) -> Any:
    return [nested(depth - 1)] if depth else 1


def reply(result: Any) -> dict[str, Any]:
    return {"kind": "reply", "request_id": 1, "result": result}


@pytest.mark.parametrize("header", EXAMPLES, ids=lambda header: header.kind)
def test_a_header_survives_a_round_trip(header: Header) -> None:
    assert wire.decode(wire.encode(header)) == header


def test_there_is_an_example_of_every_kind() -> None:
    assert sorted(header.kind for header in EXAMPLES) == list(wire.KINDS)


def test_the_bytes_of_version_1_have_not_changed() -> None:
    golden = {kind: bytes.fromhex(raw) for kind, raw in json.loads(GOLDEN.read_text()).items()}
    assert {header.kind: wire.encode(header) for header in EXAMPLES} == golden


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        pytest.param({**HEARTBEAT, "extra": 1}, "heartbeat has no field 'extra'", id="unknown key"),
        pytest.param({"kind": "resume"}, "resume lacks 'request_ids'", id="missing key"),
        pytest.param({"kind": "exec"}, "unknown kind of message 'exec'", id="unknown kind"),
        pytest.param({"kind": ["a"]}, "unknown kind", id="kind of another type"),
        pytest.param({}, "unknown kind of message None", id="no kind"),
        pytest.param([1], "not a map", id="a list"),
        pytest.param(7, "not a map", id="a number"),
        pytest.param({**RESUME, "request_ids": 5}, "request_ids is 5", id="wrong type"),
        pytest.param({**RESUME, "request_ids": [True]}, "not a 64-bit int", id="bool for int"),
        pytest.param({**RESUME, "request_ids": [2**63]}, "not a 64-bit int", id="65 bits"),
        pytest.param({**RESUME, "request_ids": ["1"]}, "not a 64-bit int", id="str in list"),
        pytest.param({**RESUME, "request_ids": None}, "not a list", id="none"),
        pytest.param({**RESUME, "request_ids": [0] * 20_000}, "max_array_len", id="long list"),
        pytest.param({"kind": "goodbye", 3: 4}, "not msgpack", id="key that is no str"),
        pytest.param({"kind": "event", "name": 1, "fields": {}}, "event.name is 1", id="int name"),
        pytest.param(
            {**reply({}), "arrays": [["x", "int32", [1], "raw", 0, 0.0, 7]]},
            "not a list of an array's fields",
            id="seventh field of an array",
        ),
        pytest.param(
            {**reply({}), "arrays": [["x", "int32", [1.0], "raw", 0, 0.0]]},
            "reply.arrays is 1.0",
            id="float in a shape",
        ),
        pytest.param({**reply({}), "arrays": [7]}, "not a list of", id="array that is a number"),
        pytest.param(reply({"a": nested(9)}), "nested deeper than 8", id="nested"),
        pytest.param(reply({"a": msgpack.ExtType(1, b"")}), "extension", id="extension"),
        pytest.param(reply({"a": msgpack.Timestamp(1)}), "header", id="timestamp"),
    ],
)
def test_a_malformed_header_is_refused(fields: object, message: str) -> None:
    with pytest.raises(wire.Malformed, match=message) as caught:
        wire.decode(msgpack.packb(fields))
    assert caught.value.code == "malformed"


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"", id="empty"),
        pytest.param(wire.encode(EXAMPLES[0])[:-1], id="truncated"),
        pytest.param(wire.encode(EXAMPLES[0]) + b"\0", id="trailing byte"),
        pytest.param(b"\xdd\xff\xff\xff\xff", id="list of 4 G elements"),
        pytest.param(b"\xdf\xff\xff\xff\xff", id="map of 4 G entries"),
        pytest.param(b"\xdb\xff\xff\xff\xff", id="string of 4 GB"),
        pytest.param(b"\xc6\xff\xff\xff\xff", id="4 GB of bytes"),
        pytest.param(b"\x91" * 5000 + b"\x01", id="nested out of bounds"),
        pytest.param(b"\xa4\xff\xfe\xfd\xfc", id="not UTF-8"),
        pytest.param(b"\xc1", id="reserved byte"),
        pytest.param(b"\x82\xa4kind\xa9heartbeat\xa4kind\xa9heartbeat", id="repeated key"),
        pytest.param(bytes(range(256)), id="noise"),
    ],
)
def test_bytes_that_are_no_header_are_refused(raw: bytes) -> None:
    with pytest.raises(wire.Malformed):
        wire.decode(raw)


def test_a_giant_header_is_refused_in_both_directions() -> None:
    with pytest.raises(BadRequest, match="header of 100000 bytes") as received:
        wire.decode(bytes(100_000))
    with pytest.raises(BadRequest, match="header of resume takes") as sent:
        wire.encode(Resume(request_ids=[2**40] * 16_000))
    assert [received.value.code, sent.value.code] == ["too_large", "too_large"]


def test_a_missing_key_takes_its_default() -> None:
    assert wire.decode(msgpack.packb({"kind": "reply", "request_id": 3})) == Reply(request_id=3)


def test_an_int_is_a_float_but_a_float_no_int() -> None:
    whole = msgpack.unpackb(wire.encode(step()))
    assert wire.decode(msgpack.packb({**whole, "learning_rate": 1})) == step(learning_rate=1.0)
    with pytest.raises(wire.Malformed, match=r"optim_step.seq is 1.0"):
        wire.decode(msgpack.packb({**whole, "seq": 1.0}))


def test_the_digest_depends_on_the_content_alone() -> None:
    frames = [b"abc"]
    digest = wire.digest(step(), frames)
    assert len(digest) == 16
    assert digest == wire.digest(step(request_id=8, digest=b"x"), [b"a", b"bc"])
    assert digest != wire.digest(step(learning_rate=0.2), frames)
    assert digest != wire.digest(step(), [b"abd"])


def test_a_signed_header_carries_its_digest() -> None:
    signed = wire.decode(wire.encode_signed(step(request_id=9), [b"abc"]))
    assert signed == step(request_id=9, digest=wire.digest(step(), [b"abc"]))


@pytest.mark.parametrize(("kind", "name"), [("hello", "api_key"), ("worker_hello", "secret")])
def test_a_secret_of_the_wrong_type_is_not_shown(kind: str, name: str) -> None:
    (example,) = [header for header in EXAMPLES if header.kind == kind]
    fields = {**dataclasses.asdict(example), "kind": kind, name: b"sesame"}
    with pytest.raises(wire.Malformed, match=rf"{kind}\.{name} is of type bytes") as caught:
        wire.decode(msgpack.packb(fields))
    assert "sesame" not in str(caught.value)
    assert "sesame" not in repr(dataclasses.replace(example, **{name: "sesame"}))
