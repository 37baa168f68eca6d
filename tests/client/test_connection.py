"""The thread with the socket: over every transport, through restarts, forks and pickles."""

import os
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import Any

import pytest
import zmq
from fake_broker import (
    DEADLINE_S,
    FakeBroker,
    failure,
    forward_backward,
    reply,
    sample,
    silent,
)

from weft.client import (
    AdamParams,
    BadRequest,
    Busy,
    Datum,
    Disconnected,
    EngineFailed,
    ModelInput,
    SamplingClient,
    SamplingParams,
    ServiceClient,
    Timeout,
    TrainingClient,
)
from weft.client import loop as loop_module
from weft.client.limits import LIMITS, Limit
from weft.client.messages import Failure
from weft.client.waiting import Reason

PROMPT = ModelInput.from_ints([1, 2, 3])
PARAMS = SamplingParams(max_tokens=4, seed=1)
NORM = "unclipped_grad_l2:mean"


def norm_of(run: TrainingClient) -> float:
    return (run.optim_step(AdamParams()).result(DEADLINE_S).metrics or {})[NORM]


@pytest.mark.parametrize("kind", ["tcp", "ipc"])
def test_a_server_is_reached_over_every_transport(
    kind: str, context: "zmq.Context[Any]", tmp_path: Path
) -> None:
    broker = FakeBroker(context, "tcp://127.0.0.1:*" if kind == "tcp" else f"ipc://{tmp_path}/s")
    try:
        with ServiceClient(base_url=broker.address, api_key="") as service:
            assert norm_of(service.create_lora_training_client("tiny")) == 0.5
    finally:
        broker.close()


def test_nothing_is_sent_before_the_first_call(
    broker: FakeBroker, context: "zmq.Context[Any]"
) -> None:
    with ServiceClient(base_url=broker.address, api_key="", context=context):
        pass
    assert broker.seen == []


def test_the_hello_carries_key_and_metadata(
    broker: FakeBroker, context: "zmq.Context[Any]"
) -> None:
    with ServiceClient(
        {"who": "me"}, base_url=broker.address, api_key="k", context=context
    ) as service:
        service.get_server_capabilities()
    (hello,) = broker.wait_for("hello")
    assert (hello.versions, hello.api_key, hello.user_metadata) == ([1], "k", {"who": "me"})


def test_answers_are_acknowledged_and_a_closed_session_says_goodbye(
    broker: FakeBroker, service: ServiceClient
) -> None:
    service.get_server_capabilities()
    broker.wait_for("ack")
    service.close()
    broker.wait_for("goodbye")


def test_an_absent_server_is_named_within_seconds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(LIMITS, "connect_s", Limit(0.1, "s", "disconnected", ""))
    with (
        ServiceClient(base_url=f"ipc://{tmp_path}/nobody", api_key="") as service,
        pytest.raises(Disconnected, match=r"ipc://.*/nobody.*`weft serve` starts one"),
    ):
        service.create_lora_training_client("tiny")


def test_a_server_that_comes_later_is_found(context: "zmq.Context[Any]", tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/late"
    service = ServiceClient(base_url=address, api_key="")
    with service, futures.ThreadPoolExecutor(1) as pool:
        asked = pool.submit(service.get_server_capabilities)
        broker = FakeBroker(context, address)
        assert asked.result(DEADLINE_S).supported_models[0].model_name == "tiny"
    broker.close()


def test_a_restarted_broker_gets_again_what_it_does_not_know(
    monkeypatch: pytest.MonkeyPatch, context: "zmq.Context[Any]", tmp_path: Path
) -> None:
    monkeypatch.setitem(LIMITS, "heartbeat_s", Limit(0.05, "s", "", ""))
    address = f"ipc://{tmp_path}/s"
    first = FakeBroker(context, address)
    with ServiceClient(base_url=address, api_key="") as service:
        run = service.create_lora_training_client("tiny")
        first.answers["optim_step"] = silent
        pending = run.optim_step(AdamParams())
        (before,) = first.wait_for("optim_step")
        first.close()
        second = FakeBroker(context, address)
        assert pending.result(DEADLINE_S).metrics == {NORM: 0.5}
        (after,) = second.wait_for("optim_step")
    second.close()
    assert after == before
    assert [header.request_ids for header in second.wait_for("resume")] == [[before.request_id]]


def test_a_busy_broker_is_asked_again_until_it_serves(
    broker: FakeBroker, service: ServiceClient
) -> None:
    run = service.create_lora_training_client("tiny")
    left = [failure, failure, None]

    def answer(header: Any, arrays: Any) -> Any:
        refuse = left.pop(0)
        if refuse is not None:
            return [refuse(header, "busy", "lane is full", 0.001)]
        return [reply(header, {"metrics": {NORM: 0.25}})]

    broker.answers["optim_step"] = answer
    assert norm_of(run) == 0.25
    assert len({header.request_id for header in broker.wait_for("optim_step", 3)}) == 1


def test_a_future_says_what_it_waits_for(broker: FakeBroker, service: ServiceClient) -> None:
    run = service.create_lora_training_client("tiny")
    broker.answers["optim_step"] = lambda header, _: [failure(header, "busy", "lane is full", 60)]
    pending = run.optim_step(AdamParams())
    broker.wait_for("optim_step")
    broker.answers["forward_backward"] = forward_backward
    data = [Datum(PROMPT, {"target_tokens": [2, 3, 4]})]
    run.forward(data, "cross_entropy").result(DEADLINE_S)  # the refusal has arrived before
    text = r"optim_step: lane is full; it is sent again in \d+\.\d s, refused 1 time so far"
    assert re.fullmatch(text, pending.waiting_for)
    with pytest.raises(Timeout, match=rf"no result within 0.01 s: {text}"):
        pending.result(0.01)


def test_whoever_waits_for_long_is_told_why_by_the_server(
    monkeypatch: pytest.MonkeyPatch, broker: FakeBroker, service: ServiceClient
) -> None:
    monkeypatch.setitem(LIMITS, "explain_s", Limit(0.01, "s", "", ""))
    run = service.create_lora_training_client("tiny")
    broker.answers["optim_step"] = silent
    reason = {"code": "queued", "detail": "3rd in your lane", "place": 3}
    broker.answers["explain"] = lambda header, _: [reply(header, {"reasons": [reason]})]
    pending = run.optim_step(AdamParams())
    with futures.ThreadPoolExecutor(1) as pool:
        waiter = pool.submit(pending.result, 30)
        (asked, again) = broker.wait_for("explain", 2)[:2]
        (step,) = broker.wait_for("optim_step")
        assert asked.request_ids == again.request_ids == [step.request_id]
        with pytest.raises(Timeout, match=r"0\.1 s: optim_step: 3rd in your lane"):
            pending.result(0.1)
        broker.push(reply(step, {"metrics": {}}))
        assert waiter.result(DEADLINE_S).metrics == {}
    assert pending.explain() is None


def test_a_reason_may_be_asked_for(broker: FakeBroker, service: ServiceClient) -> None:
    run = service.create_lora_training_client("tiny")
    broker.answers["optim_step"] = silent
    reason = {"code": "running", "detail": "3 of 8", "done": 3, "total": 8}
    broker.answers["explain"] = lambda header, _: [reply(header, {"reasons": [reason]})]
    pending = run.optim_step(AdamParams())
    expected = Reason(code="running", detail="3 of 8", done=3, total=8)
    assert pending.explain(DEADLINE_S) == pending.map(str).explain(DEADLINE_S) == expected
    assert pending.waiting_for == "optim_step: 3 of 8"
    broker.answers["explain"] = silent
    with pytest.raises(Timeout, match=r"inproc://\w+ has not said why within 0.01 s"):
        pending.explain(0.01)


def test_any_number_of_calls_from_any_thread(broker: FakeBroker, service: ServiceClient) -> None:
    sampler = service.create_sampling_client(base_model="tiny")

    def work(number: int) -> list[int]:
        pending = [sampler.sample(PROMPT, 1, PARAMS) for _ in range(50)]
        return [future.result(DEADLINE_S).sequences[0].tokens[0] for future in pending]

    with futures.ThreadPoolExecutor(4) as pool:
        results = list(pool.map(work, range(4)))
    assert results == [[4] * 50] * 4
    assert len({header.request_id for header in broker.wait_for("sample", 200)}) == 200


def test_unanswered_bytes_are_bounded(
    monkeypatch: pytest.MonkeyPatch, broker: FakeBroker, service: ServiceClient
) -> None:
    run = service.create_lora_training_client("tiny")
    broker.answers["optim_step"] = silent
    run.optim_step(AdamParams())
    monkeypatch.setattr(loop_module, "_MAX_UNANSWERED", 100)
    with pytest.raises(Busy, match="already wait for an answer, at most 100"):
        run.optim_step(AdamParams())
    monkeypatch.undo()
    run.optim_step(AdamParams())
    assert [header.seq for header in broker.wait_for("optim_step", 2)] == [1, 2]


def test_a_call_can_be_withdrawn_when_nothing_more_may_be_sent(
    broker: FakeBroker, service: ServiceClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.answers["query"] = silent
    broker.answers["cancel"] = lambda header, _: [
        reply(header, {}),
        (Failure(request_id=header.target_id, code="cancelled", detail=""), ()),
    ]
    future = service.get_status()
    monkeypatch.setattr(loop_module, "_MAX_UNANSWERED", 1)
    assert future.cancel(DEADLINE_S)


def test_a_call_made_while_the_thread_fails_is_refused(
    broker: FakeBroker, service: ServiceClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.answers["query"] = silent
    refused: list[str] = []

    def call_again(_: object) -> None:
        try:
            service.get_status()
        except Disconnected as error:
            refused.append(str(error))

    first = service.get_status()
    first.future().add_done_callback(call_again)
    loop = service.connection._loop
    thread = loop._thread
    assert thread is not None
    monkeypatch.setattr(loop.link, "tick", lambda now: 1 / 0)
    service.connection._loop.wait_began(1, 0.0)  # wakes it
    with pytest.raises(EngineFailed, match="division by zero"):
        first.result(DEADLINE_S)
    thread.join(DEADLINE_S)
    assert [text.partition(" is ")[2] for text in refused] == ["closed"]


def test_a_nonsense_answer_fails_its_call_alone(broker: FakeBroker, service: ServiceClient) -> None:
    run = service.create_lora_training_client("tiny")
    broker.answers["optim_step"] = lambda header, _: [reply(header, {"metric": 1})]
    with pytest.raises(EngineFailed, match="unexpected answer: KeyError"):
        run.optim_step(AdamParams()).result(DEADLINE_S)
    assert service.get_server_capabilities().supported_models


def test_a_malformed_answer_is_the_engines_fault(
    broker: FakeBroker, service: ServiceClient
) -> None:
    sampler = service.create_sampling_client(base_model="tiny")

    def answer(header: Any, arrays: Any) -> Any:
        ((whole, frames),) = sample(header, arrays)
        return [(whole, [frames[0][:-1], *frames[1:]])]

    broker.answers["sample"] = answer
    with pytest.raises(EngineFailed, match="needs 4 bytes, its frame has 3"):
        sampler.sample(PROMPT, 1, PARAMS).result(DEADLINE_S)


def test_closing_fails_what_is_not_answered(broker: FakeBroker, service: ServiceClient) -> None:
    run = service.create_lora_training_client("tiny")
    broker.answers["optim_step"] = silent
    pending = run.optim_step(AdamParams())
    service.close()
    with pytest.raises(Disconnected, match="was closed"):
        pending.result(DEADLINE_S)
    with pytest.raises(Disconnected, match="is closed"):
        run.optim_step(AdamParams())


def test_a_forgotten_client_leaves_no_thread(
    broker: FakeBroker, context: "zmq.Context[Any]"
) -> None:
    before = threading.active_count()
    service = ServiceClient(base_url=broker.address, api_key="", context=context)
    service.get_server_capabilities()
    assert threading.active_count() == before + 1
    del service
    assert threading.active_count() == before


def test_a_script_that_does_not_close_ends(ipc_broker: FakeBroker) -> None:
    code = (
        "from weft.client import ServiceClient, AdamParams\n"
        f"run = ServiceClient(base_url={ipc_broker.address!r}).create_lora_training_client('tiny')\n"
        "run.optim_step(AdamParams()).result(30)\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    ipc_broker.wait_for("goodbye")

    assert (done.returncode, done.stderr) == (0, "")


def _sample_there(sampler: SamplingClient) -> list[int]:
    return sampler.sample(PROMPT, 1, PARAMS).result(DEADLINE_S).sequences[0].tokens


def test_a_sampling_client_travels_to_another_process(
    context: "zmq.Context[Any]", tmp_path: Path
) -> None:
    broker = FakeBroker(context, f"ipc://{tmp_path}/s")
    with ServiceClient(base_url=broker.address, api_key="secret") as service:
        sampler = service.create_sampling_client(base_model="tiny")
        code = (
            "import pickle, sys\n"
            "from weft.client import ModelInput, SamplingParams\n"
            "sampler = pickle.loads(sys.stdin.buffer.read())\n"
            "response = sampler.sample(ModelInput.from_ints([5]), 1, SamplingParams(max_tokens=1))\n"
            "print(response.result(30).sequences[0].tokens)\n"
        )
        done = subprocess.run(
            [sys.executable, "-P", "-c", code],
            input=pickle.dumps(sampler),
            capture_output=True,
            timeout=60,
            check=True,
        )
    first, second = broker.wait_for("hello", 2)
    broker.close()
    assert done.stdout.strip() == b"[6]"
    assert first.session_id != second.session_id
    assert second.api_key == "secret"


def test_clients_unpickled_here_share_a_connection(ipc_broker: FakeBroker) -> None:
    with ServiceClient(base_url=ipc_broker.address, api_key="") as service:
        sampler = service.create_sampling_client(base_model="tiny")
        copies = [pickle.loads(pickle.dumps(sampler)) for _ in range(3)]
        assert [_sample_there(copy) for copy in copies] == [[4]] * 3
        assert len(ipc_broker.wait_for("hello", 2)) == 2
        copies.clear()


def test_a_client_of_an_engine_in_this_process_cannot_travel(service: ServiceClient) -> None:
    for client in (service, service.create_sampling_client(base_model="tiny")):
        with pytest.raises(BadRequest, match="cannot be pickled"):
            pickle.dumps(client)


@pytest.mark.parametrize("use", ["send", "wait", "explain", "cancel"])
def test_a_forked_client_refuses_with_advice(
    monkeypatch: pytest.MonkeyPatch, broker: FakeBroker, service: ServiceClient, use: str
) -> None:
    monkeypatch.setitem(LIMITS, "explain_s", Limit(0.01, "s", "", ""))
    run = service.create_lora_training_client("tiny")
    broker.answers["save_state"] = silent
    pending = run.save_state("a")
    uses: dict[str, Callable[[], object]] = {
        "send": lambda: run.optim_step(AdamParams()),
        "wait": lambda: pending.result(DEADLINE_S),
        "explain": pending.explain,
        "cancel": pending.cancel,
    }
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            uses[use]()
        except BadRequest as error:
            os.write(writer, str(error).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    message = os.read(reader, 4096).decode()
    os.close(reader)
    os.close(writer)
    assert "does not survive a fork" in message
    assert "spawn" in message
    assert norm_of(run) == 0.5


@pytest.mark.parametrize("address", ["http://127.0.0.1:8000", "127.0.0.1:5757", "inproc://alone"])
def test_an_address_of_another_kind_is_refused(address: str) -> None:
    with pytest.raises(BadRequest, match="address"):
        ServiceClient(base_url=address, api_key="")
