"""What holds for every request: its key, its body, its errors, and what is logged of it."""

import asyncio
import json
import logging
import socket
import struct
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest
import zstandard
from gateways import Caller, Stand

from weft.client.errors import WeftError
from weft.client.limits import limit
from weft.engine.gateway import app as app_module
from weft.engine.gateway import connections
from weft.engine.gateway.call import Call, Handler, Reply, Route
from weft.engine.gateway.errors import Unserved

Build = Callable[..., Stand]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "LINGER_S", 0.1)


MAX_BODY = limit("body_bytes")


def exchange(stand: Stand, *pieces: bytes) -> bytes:
    """Say bytes, and take what comes until the other side ends."""
    host, port = urlsplit(stand.url).netloc.split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        for piece in pieces:
            connection.sendall(piece)
        got = b""
        while more := connection.recv(1 << 16):
            got += more
        return got


def head(method: str, path: str, *lines: str) -> bytes:
    fixed = ["Host: a", "X-API-Key: tml-any", "Connection: close"]
    return "\r\n".join([f"{method} {path} HTTP/1.1", *fixed, *lines, "", ""]).encode()


@pytest.mark.parametrize(
    "headers", [{"X-API-Key": "KEY"}, {"Authorization": "Bearer KEY"}], ids=["own", "bearer"]
)
def test_a_key_is_taken_from_either_header(build: Build, headers: dict[str, str]) -> None:
    stand = build(keyed=True)
    key = stand.caller(tenant="alice").key
    nobody = Caller(stand.url, "")
    named = {name: value.replace("KEY", key) for name, value in headers.items()}
    assert nobody.call("GET", "/api/v1/sessions", headers={"X-API-Key": "", **named}).status == 200
    assert nobody.call("GET", "/api/v1/sessions", headers={"X-API-Key": ""}).status == 401


def test_a_wrong_key_is_refused_before_its_body_is_read(build: Build) -> None:
    stand = build(keyed=True)
    stand.caller(tenant="alice")
    answer = exchange(
        stand, head("POST", "/api/v1/create_session", f"Content-Length: {MAX_BODY}"), b"{"
    )
    assert answer.startswith(b"HTTP/1.1 401")
    assert b'"code":"unauthorized"' in answer


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/api/v1/nothing", 404),
        ("GET", "/api/v1/asample", 405),
        ("OPTIONS", "/api/v1/asample", 405),
        ("HEAD", "/api/v1/asample", 405),
        ("PATCH", "/api/v1/asample", 405),
        ("POST", "/healthz", 405),
        ("GET", "/api/v1/%zz", 404),
        ("GET", "/api/v1/../../etc/passwd", 404),
        ("GET", "/files/token/..%2f..%2fetc%2fpasswd", 404),
        ("GET", "/files/token/%00", 404),
        ("GET", "//", 404),
    ],
)
def test_what_is_no_route_is_refused_in_json(
    caller: Caller, method: str, path: str, status: int
) -> None:
    answer = caller.call(method, path)
    assert answer.status == status
    assert answer.headers["x-should-retry"] == "false"
    assert method == "HEAD" or set(answer.json) == {"error", "code"}


def test_a_wrong_method_names_those_there_are(caller: Caller) -> None:
    path = "/api/v1/training_runs/a/checkpoints/weights/b/publish"
    assert caller.call("GET", path).headers["Allow"] == "DELETE, POST"


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"", "truncated"),
        (b"no json", "malformed"),
        (b"\xff\xfe", "malformed"),
        (b"[]", "object"),
        (b"[" * 200_000, "CreateSession"),
        (b'{"a":' * 200_000, "CreateSession"),
        (b'{"tags":[],"sdk_version":"1","other":1}', "other"),
        (b'{"tags":[],"sdk_version":"1","user_metadata":{"a":NaN}}', "malformed"),
        (b'{"tags":["\\ud800"],"sdk_version":"1"}', "surrogate"),
        (b'{"tags":[],"sdk_version":null}', "sdk_version"),
    ],
)
def test_json_that_cannot_be_is_refused_by_what_is_wrong(
    caller: Caller, body: bytes, word: str
) -> None:
    answer = caller.post("create_session", body)
    assert (answer.status, answer.json["code"]) == (400, "malformed")
    assert word in answer.json["error"]
    assert len(answer.body) < 5000


def test_the_last_of_a_field_given_twice_counts_everywhere(caller: Caller) -> None:
    run_id = caller.run()
    fields = json.dumps({"model_id": run_id, "adam_params": {}})
    twice = fields[:-1].encode() + b', "seq_id": 9, "seq_id": 1}'
    assert caller.result(caller.post("optim_step", twice)).json["metrics"]["step:max"] == 1


def test_a_parameter_given_twice_is_refused(caller: Caller) -> None:
    assert caller.get("training_runs?limit=1&limit=2").status == 400


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "training_runs/a/checkpoints?limit=1"),
        ("GET", "training_runs?limits=1"),
        ("GET", "samplers/a?limit=1"),
        ("POST", "create_session?limit=1"),
    ],
)
def test_a_parameter_that_a_route_does_not_take_is_refused_by_name(
    caller: Caller, method: str, path: str
) -> None:
    answer = caller.call(method, f"/api/v1/{path}")
    assert (answer.status, answer.json["code"]) == (400, "malformed")
    assert path.partition("?")[2].partition("=")[0] in answer.json["error"]


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "chunked"])
def test_a_body_over_the_limit_is_refused(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, declared: bool
) -> None:
    monkeypatch.setattr(app_module, "_MAX_BODY", 100_000)
    if declared:
        said = head("POST", "/api/v1/create_session", "Content-Length: 100001")
    else:
        piece = b"186a1\r\n" + bytes(100_001) + b"\r\n"
        said = head("POST", "/api/v1/create_session", "Transfer-Encoding: chunked") + piece
        said += b"0\r\n\r\n"
    answer = exchange(stand, said + bytes(100_001 if declared else 0))
    assert answer.startswith(b"HTTP/1.1 400")
    assert b'"code":"too_large"' in answer
    assert stand.gateway.sessions.load.num_bytes == 0


def test_a_bomb_is_not_unpacked(stand: Stand, caller: Caller) -> None:
    bomb = zstandard.compress(bytes(MAX_BODY + 1))
    assert len(bomb) < 10_000
    answer = caller.post("create_session", bomb, Content_Encoding="zstd")
    assert (answer.status, answer.json["code"]) == (400, "too_large")
    assert stand.gateway.sessions.load.num_bytes == 0


def test_a_compressed_body_is_read(caller: Caller) -> None:
    body = zstandard.compress(b'{"tags":[],"sdk_version":"0.38.0"}')
    assert caller.post("create_session", body, Content_Encoding="zstd").status == 200


def test_a_body_that_does_not_come_is_given_up(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_module, "_BODY_S", 0.1)
    answer = exchange(stand, head("POST", "/api/v1/create_session", "Content-Length: 10"), b"{")
    assert answer.startswith(b"HTTP/1.1 504")
    assert b'"code":"timeout"' in answer
    assert stand.gateway.sessions.load.num_bytes == 0


def test_a_damaged_chunk_is_refused(stand: Stand) -> None:
    said = head("POST", "/api/v1/create_session", "Transfer-Encoding: chunked")
    answer = exchange(stand, said + b"zz\r\n")
    assert answer.startswith((b"HTTP/1.0 400", b"HTTP/1.1 400"))
    assert b'"code":"malformed"' in answer


def test_a_body_for_which_there_is_no_room_is_to_come_again(
    stand: Stand, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = stand.gateway.sessions.load
    monkeypatch.setattr(load, "_max_bytes", 100)
    answer = caller.post("create_session", {"tags": ["a" * 100], "sdk_version": "1"})
    assert (answer.status, answer.json["code"]) == (429, "busy")
    assert (answer.headers["x-should-retry"], answer.headers["retry-after"]) == ("true", "1")
    assert load.num_bytes == 0


def test_a_caller_who_vanishes_leaves_no_bytes_behind(stand: Stand) -> None:
    host, port = urlsplit(stand.url).netloc.split(":")
    said = head("POST", "/api/v1/create_session", "Content-Length: 50000")
    load = stand.gateway.sessions.load
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(said + bytes(20_000))
        while not load.num_bytes:
            stand.loop.run(asyncio.sleep(0.001))
        reset = struct.pack("ii", 1, 0)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
    while load.num_bytes:
        stand.loop.run(asyncio.sleep(0.001))


def test_no_log_holds_a_key_a_body_or_words_of_a_caller(
    build: Build, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    stand = build(keyed=True)
    caller = stand.caller(tenant="alice")
    event = {"headers": {"x-api-key": caller.key}, "text": "secret"}
    assert caller.post("telemetry", {"events": [event]}).json == {"status": "accepted"}
    caller.post("create_session", {"tags": ["secret"], "sdk_version": "secret", "other": 1})
    caller.get("secret%0A")
    caller.call("GET", f"/files/{caller.key}")
    Caller(stand.url, "tml-secret").get("sessions")
    caller.post("session_heartbeat", {"session_id": "s" * 100_000})
    assert caller.key not in caplog.text
    assert "tml-secret" not in caplog.text
    assert "secret" not in caplog.text.replace("secret%0A", "")
    assert "s" * 100 not in caplog.text


def test_a_host_that_cannot_be_is_no_fault_of_ours(stand: Stand) -> None:
    said = head("GET", "/api/v1/sessions").replace(b"Host: a", b"Host: a b]:c")
    assert exchange(stand, said).split()[1] in (b"200", b"400")


async def fail(call: Call) -> Reply:
    raise RuntimeError("words of a fault")


async def refuse(call: Call) -> Reply:
    raise WeftError("a sentence", "out_of_memory")


async def serve_not(call: Call) -> Reply:
    raise Unserved(f"{call.query['x']} is not served", "x")


async def tell_much(call: Call) -> Reply:
    return Reply(bytes(range(256)) * 8192)


def with_route(build: Build, handler: Handler) -> Caller:
    return build(routes=[Route("GET", "/api/v1/odd", handler, takes_query=True)]).caller()


def test_a_fault_of_ours_is_told_without_its_words(
    build: Build, caplog: pytest.LogCaptureFixture
) -> None:
    answer = with_route(build, fail).get("odd")
    assert (answer.status, answer.json["code"]) == (500, "internal")
    assert b"words" not in answer.body
    assert "words of a fault" in caplog.text


def test_the_log_tells_once_what_is_not_served(
    build: Build, caplog: pytest.LogCaptureFixture
) -> None:
    caller = with_route(build, serve_not)
    for value in ("secret", "other"):
        answer = caller.get(f"odd?x={value}")
        assert (answer.status, answer.json["code"]) == (400, "not_served")
    told = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert told == ["GET /api/v1/odd: x is not served; it was asked for and refused"]


def test_an_error_has_its_status_and_code(build: Build) -> None:
    answer = with_route(build, refuse).get("odd")
    assert answer.status == 422
    assert answer.json == {"error": "a sentence", "code": "out_of_memory"}


def test_a_long_answer_comes_whole(build: Build) -> None:
    answer = with_route(build, tell_much).get("odd")
    assert answer.body == bytes(range(256)) * 8192
    assert answer.headers["Content-Type"] == "application/json"
