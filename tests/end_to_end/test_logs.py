"""What a server logs while tenants work: ids, and never what they send."""

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import zmq
from processes import Served
from raw_client import RawClient

from weft.client import AdamParams, Datum, ModelInput, SamplingParams, ServiceClient
from weft.client.messages import Failure

KEY = "tml-a-key-nobody-may-see"
TOKENS = [287, 299, 211, 303, 237]  # rare enough beside one another
ADVANTAGE = 0.372519  # of a loss input
STRANGE_TOKEN = 987654321  # beyond the vocabulary, so that an error quotes it
METADATA = "the-diary-of-a-tenant"
STOP = "zyzzyva"


def work(address: str) -> str:
    """A loop with everything recognisable in it; returns the run's id."""
    with ServiceClient({"note": METADATA}, base_url=address, api_key=KEY) as service:
        run = service.create_lora_training_client(
            "weft/tiny", rank=4, user_metadata={"note": METADATA}
        )
        data = [
            Datum(
                ModelInput.from_ints(TOKENS[:-1]),
                {
                    "target_tokens": TOKENS[1:],
                    "logprobs": [-1.0] * 4,
                    "advantages": [ADVANTAGE] * 4,
                },
            )
        ]
        run.forward_backward(data, "importance_sampling").result(60)
        run.optim_step(AdamParams(learning_rate=1e-3)).result(60)
        sampler = run.save_weights_and_get_sampling_client()
        prompt = ModelInput.from_ints(TOKENS)
        sampler.sample(prompt, 1, SamplingParams(max_tokens=4, stop=[STOP])).result(60)
        return run.model_id


def work_badly(address: str) -> str:
    """A call whose error quotes what was sent; returns that sentence."""
    context: zmq.Context[Any] = zmq.Context()
    try:
        client = RawClient(context, address, api_key=KEY)
        client.send(client.create())
        client.send(*client.call(2, 1, [STRANGE_TOKEN, 2, 3], loss_fn=METADATA))
        failure = client.answers(2)[2]
        client.socket.close()
    finally:
        context.term()
    assert isinstance(failure, Failure)
    return failure.detail


def post(url: str, **body: Any) -> tuple[int, str]:
    """Status and body of the gateway's answer to a request with the same key."""
    headers = {"X-API-Key": KEY, "Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def work_over_http(url: str) -> None:
    """The same, past the gateway."""
    assert post(f"{url}/api/v1/no_such_route", tokens=TOKENS)[0] == 404
    session = {"tags": [METADATA], "user_metadata": {"note": METADATA}, "sdk_version": "0"}
    _, opened = post(f"{url}/api/v1/create_session", **session)
    sampler = {
        "session_id": json.loads(opened)["session_id"],
        "sampling_session_seq_id": 0,
        "base_model": "weft/tiny",
    }
    _, opened = post(f"{url}/api/v1/create_sampling_session", **sampler)
    status, detail = post(
        f"{url}/api/v1/asample",
        sampling_session_id=json.loads(opened)["sampling_session_id"],
        seq_id=0,
        prompt={"chunks": [{"type": "encoded_text", "tokens": [STRANGE_TOKEN]}]},
        sampling_params={"max_tokens": 1, "stop": [STOP]},
    )
    assert (status, str(STRANGE_TOKEN) in detail) == (400, True)


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """All that a server at its most talkative writes, and the id of a run that it served."""
    folder: Path = tmp_path_factory.mktemp("served")
    options = ("--log-format", "json", "--log-level", "debug", "--http", "127.0.0.1:0")
    with (folder / "stderr").open("w", encoding="utf-8") as stderr:
        served = Served(
            "weft/tiny", folder, *options, "--memory-bytes", "1000000000", stderr=stderr.fileno()
        )
        try:
            served.wait_until_ready()
            assert served.process.stdout is not None
            url = served.process.stdout.readline().split()[-1]
            run_id = work(served.address)
            assert METADATA in work_badly(served.address)
            work_over_http(url)
            served.end()
        finally:
            if served.process.poll() is None:
                served.process.kill()
                served.process.communicate()
    return (folder / "stderr").read_text(encoding="utf-8"), run_id


def test_every_line_is_an_object_with_time_level_logger_and_message(
    logged: tuple[str, str],
) -> None:
    lines = [json.loads(line) for line in logged[0].splitlines()]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    assert {line["level"] for line in lines} >= {"DEBUG", "INFO"}


def test_a_request_is_found_by_the_ids_of_its_run_session_and_tenant(
    logged: tuple[str, str],
) -> None:
    text, run_id = logged
    lines = [json.loads(line) for line in text.splitlines()]
    ids = {"run_id": run_id, "session_id": run_id.partition(":")[0], "tenant": "local"}
    kind = ids | {"kind": "forward_backward"}
    found = [line["message"] for line in lines if line.items() >= kind.items()]
    assert found == ["dispatched", "done"]
    messages = {line["message"] for line in lines}
    assert messages >= {"session opened", "worker ready", "run created", "session ended"}


@pytest.mark.parametrize(
    "secret",
    [KEY, "287, 299", "287 299", "287,299", "0.3725", str(STRANGE_TOKEN), METADATA, STOP],
)
def test_nothing_that_a_tenant_sent_is_there(logged: tuple[str, str], secret: str) -> None:
    offences = [line for line in logged[0].splitlines() if secret in line]
    assert offences == []
