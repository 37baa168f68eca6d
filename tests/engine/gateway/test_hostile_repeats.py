"""Posts that come twice, in another order, or are refused; replies that are lost on their way."""

import json
import random
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest
import zstandard
from gateways import Caller, Stand, model_fields, pass_body, sample_fields, step_fields

from weft.client.limits import limit
from weft.engine.gateway import app, numbered
from weft.engine.gateway.names import request_number

Build = Callable[..., Stand]
MAX_JSON = limit("json_bytes")


@pytest.fixture
def run_id(caller: Caller) -> str:
    return caller.run()


def steps(caller: Caller, run_id: str, seq: int) -> float:
    """How many steps a run has made, after one more."""
    return float(caller.result(caller.step(run_id, seq)).json["metrics"]["step:max"])


def test_an_answer_that_was_lost_is_there_when_asked_for_again(
    stand: Stand, caller: Caller, run_id: str
) -> None:
    posted = caller.step(run_id, 1)
    caller.result(posted)
    body = json.dumps({"request_id": posted.json["request_id"]}).encode()
    said = f"POST /api/v1/retrieve_future HTTP/1.1\r\nHost: a\r\nX-API-Key: {caller.key}\r\n"
    host, port = urlsplit(stand.url).netloc.split(":")
    for _ in range(5):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(f"{said}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            assert connection.recv(1)  # the rest never arrives
    assert caller.poll(posted.json["request_id"]).json["metrics"]["step:max"] == 1


def test_a_repeat_is_the_same_request_and_has_one_effect(caller: Caller, run_id: str) -> None:
    first, second = caller.step(run_id, 1), caller.step(run_id, 1)
    assert first.body == second.body
    assert caller.result(first).body == caller.result(second).body == caller.result(first).body
    assert steps(caller, run_id, 2) == 2


def test_repeats_at_the_same_time_have_one_effect(caller: Caller, run_id: str) -> None:
    with ThreadPoolExecutor(8) as threads:
        posted = list(threads.map(lambda _: caller.step(run_id, 1), range(24)))
    assert len({answer.body for answer in posted}) == 1
    caller.result(posted[0])
    assert steps(caller, run_id, 2) == 2


@pytest.mark.parametrize("is_held", [True, False])
def test_other_content_under_a_number_in_use_is_refused_and_changes_nothing(
    caller: Caller, run_id: str, is_held: bool
) -> None:
    first, second = (1, 2) if not is_held else (2, 1)
    posted = caller.step(run_id, first)
    if not is_held:
        caller.result(posted)
    refused = caller.step(run_id, first, beta1=0.5)
    assert (refused.status, refused.json["code"]) == (422, "conflict")
    assert caller.passed(run_id, first).status == 422
    caller.result(caller.step(run_id, second))
    assert caller.result(posted).json["metrics"]["step:max"] == first
    assert steps(caller, run_id, 3) == 3


@pytest.mark.parametrize("is_held", [True, False])
def test_garbage_under_a_number_in_use_does_not_use_it_up(
    caller: Caller, run_id: str, is_held: bool
) -> None:
    first, second = (1, 2) if not is_held else (2, 1)
    posted = caller.step(run_id, first)
    garbage = {**step_fields(run_id, first), "other": 1}
    assert caller.post("optim_step", garbage).status == 400
    caller.result(caller.step(run_id, second))
    assert caller.result(posted).json["metrics"]["step:max"] == first


def test_parts_in_any_order_run_in_the_order_of_their_numbers(caller: Caller, run_id: str) -> None:
    posted = {seq: caller.passed(run_id, seq, (seq,) * 4) for seq in (2, 3, 1)}
    posted[4] = caller.step(run_id, 4)
    assert steps(caller, run_id, 5) == 2
    assert all(caller.result(answer).status == 200 for answer in posted.values())


def refused_posts(run_id: str, seq: int) -> dict[str, tuple[str, Any]]:
    """Route and body of posts that are refused although their number can be read."""
    place = {"model_id": run_id, "seq_id": seq}
    whole = pass_body(run_id, seq)
    return {
        "an unknown field": ("optim_step", {**step_fields(run_id, seq), "other": 1}),
        "no params": ("optim_step", place),
        "another optimizer": (
            "optim_step",
            {**place, "optimizer_params": {"type": "dimuon", "learning_rate": 1}},
        ),
        "a bad value": ("optim_step", {**place, "adam_params": {"beta1": 2.0}}),
        "a null": ("optim_step", {**place, "adam_params": {"learning_rate": None}}),
        "a bad name": ("save_weights", {**place, "path": "../x"}),
        "more than may be read": ("save_weights", {**place, "path": "x" * MAX_JSON}),
        "a bad ttl": ("save_weights", {**place, "path": "x", "ttl_seconds": -1}),
        "another kind": (
            "save_weights_for_sampler",
            {**place, "sampling_session_seq_id": 1, "kind": "inflight"},
        ),
        "neither name nor number": ("save_weights_for_sampler", place),
        "recipients": (
            "save_weights_external",
            {**place, "path": "x", "age_encryption_recipients": ["a"]},
        ),
        "no path": ("load_weights", {**place, "path": "nowhere", "optimizer": True}),
        "a field too many": (
            "load_weights",
            {**place, "path": "a", "optimizer": True, "base_model": "b"},
        ),
        "a token too large": ("forward_backward", pass_body(run_id, seq, (1, 1000))),
        "too long": ("forward_backward", pass_body(run_id, seq, (1,) * 65)),
        "no data": ("forward_backward", whole[: len(whole) - 1]),
        "a bomb": ("forward_backward", whole + b"\x1a\x00" * 200_000),
        "garbage behind": ("forward_backward", whole + b"\xff\xff"),
    }


@pytest.mark.parametrize("what", refused_posts("", 0))
def test_a_refused_post_uses_its_number_up(caller: Caller, run_id: str, what: str) -> None:
    route, body = refused_posts(run_id, 1)[what]
    answer = caller.post(route, body)
    assert 400 <= answer.status < 500, answer
    assert answer.status not in (408, 409, 429)
    assert steps(caller, run_id, 2) == 1


@pytest.mark.parametrize(
    ("encoding", "code"), [("zstd", "malformed"), ("gzip", "not_served"), ("", "malformed")]
)
def test_a_pass_that_ends_too_early_or_is_packed_otherwise_is_refused_by_that(
    caller: Caller, run_id: str, encoding: str, code: str
) -> None:
    body = pass_body(run_id, 1) + random.Random(0).randbytes(300_000)
    packed = zstandard.compress(body) if encoding == "zstd" else body
    refused = caller.post("forward_backward", packed[:-1], Content_Encoding=encoding)
    assert (refused.status, refused.json["code"]) == (400, code)
    assert steps(caller, run_id, 2) == 1


@pytest.mark.parametrize("encoding", ["", "zstd"])
def test_a_pass_that_is_too_large_uses_its_number_up(
    caller: Caller, run_id: str, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    monkeypatch.setattr(app, "_MAX_BODY", 10_000)
    body = pass_body(run_id, 1) + bytes(20_000)
    packed = zstandard.compress(body) if encoding else body
    refused = caller.post("forward_backward", packed, Content_Encoding=encoding)
    assert (refused.status, refused.json["code"]) == (400, "too_large")
    assert steps(caller, run_id, 2) == 1


def test_a_run_is_made_once_and_only_as_it_was_asked_for_first(caller: Caller) -> None:
    fields = model_fields(caller.session())
    first, again = caller.post("create_model", fields), caller.post("create_model", fields)
    assert first.body == again.body
    other = {**fields, "lora_config": {"rank": 8, "seed": 1}}
    assert caller.post("create_model", other).status == 422
    run_id = caller.result(first).json["model_id"]
    assert caller.post("get_info", {"model_id": run_id}).json["lora_rank"] == 4


def test_a_sample_is_drawn_once_and_only_as_it_was_asked_for_first(
    stand: Stand, caller: Caller
) -> None:
    sampler_id = caller.sampler()
    first, again = caller.sample(sampler_id, 0), caller.sample(sampler_id, 0)
    assert first.body == again.body
    assert caller.result(first).body == caller.result(again).body
    assert caller.sample(sampler_id, 0, num_samples=2).status == 422
    number = request_number("sample", sampler_id, 0)
    seen = [header for header in stand.worker.seen if getattr(header, "request_id", 0) == number]
    assert len(seen) == 1


def test_a_sampler_is_opened_once_and_only_on_what_was_asked_for_first(caller: Caller) -> None:
    sampler_id = caller.sampler()
    session_id = sampler_id.partition(":")[0]
    assert caller.sampler(session_id) == sampler_id
    fields = {"session_id": session_id, "sampling_session_seq_id": 0, "model_path": "tinker://x"}
    assert caller.post("create_sampling_session", fields).status == 400


def test_a_repeat_after_a_restart_of_the_gateway_has_no_second_effect(build: Build) -> None:
    stand = build()
    caller = stand.caller()
    run_id = caller.run()
    caller.result(caller.step(run_id, 1))
    stand.restart_gateway()
    again = caller.result(caller.step(run_id, 1))
    assert "(result_expired)" in again.json["error"]  # the answer went with the gateway
    assert caller.result(caller.step(run_id, 2)).json["metrics"]["step:max"] == 2


def test_what_was_under_way_when_the_gateway_ended_is_there_for_a_repeat(build: Build) -> None:
    stand = build()
    caller = stand.caller()
    run_id = caller.run()
    caller.step(run_id, 2)  # waits for number 1
    stand.restart_gateway()
    again = caller.step(run_id, 2)
    caller.step(run_id, 1)
    assert caller.result(again).json["metrics"]["step:max"] == 2


def test_a_session_is_made_once_for_each_key_of_its_post(caller: Caller) -> None:
    first = caller.session(X_Idempotency_Key="a")
    assert caller.session(X_Idempotency_Key="a") == first
    assert caller.session(X_Idempotency_Key="b") != first
    assert caller.session() != caller.session()


def test_a_sample_that_is_withdrawn_or_done_can_be_withdrawn_again(caller: Caller) -> None:
    posted = caller.sample(caller.sampler(), 0)
    caller.result(posted)
    for _ in range(2):
        assert caller.post("cancel_future", posted.json).status in (200, 400)
    withdrawn = {"request_id": posted.json["request_id"]}
    assert [caller.post("cancel_future", withdrawn).status for _ in range(2)] == [200, 200]


def test_what_the_sdk_says_it_has_is_kept_no_more(caller: Caller) -> None:
    sampler_id = caller.sampler()
    posted = caller.sample(sampler_id, 0)
    caller.result(posted)
    request_id = posted.json["request_id"]
    fields = {"target": {"sampling_session_id": sampler_id}, "timeout": 0}
    caller.post("retrieve_futures", {**fields, "retrieved_request_ids": [request_id]})
    assert caller.poll(request_id).status == 410
    assert caller.post("asample", sample_fields(sampler_id, 0)).status == 410


def test_numbers_that_are_used_up_without_end_are_to_wait(
    caller: Caller, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numbered, "_MAX_WAITING", 3)
    for seq in range(2, 5):
        caller.step(run_id, seq)  # each waits for number 1
    refused = caller.post("optim_step", {"model_id": run_id, "seq_id": 9})
    assert (refused.status, refused.json["code"]) == (429, "busy")
