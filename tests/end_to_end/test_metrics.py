"""The figures of a running server: they are those of the work done, and never run backwards."""

import json
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from tenants import make_data, train

from weft.client import ModelInput, SamplingParams, ServiceClient
from weft.engine import Engine
from weft.engine.serving import Server

WAIT_S = 60.0
PROMPT = ModelInput.from_ints([1, 2, 3])

Figures = dict[str, Any]


def figures(service: ServiceClient, is_there: Callable[[Figures], bool]) -> Figures:
    """The metrics, once they are as awaited: a worker tells its own once a second."""
    deadline = time.monotonic() + WAIT_S
    while not is_there(told := service.get_metrics().result(WAIT_S)):
        assert time.monotonic() < deadline, told
        time.sleep(0.02)  # nobody is told when a worker reports
    return told


def test_tokens_steps_and_requests_are_those_that_were_asked_for(model_path: str) -> None:
    with (
        Engine(model_path, memory_bytes=1 << 30) as engine,
        engine.client() as service,
        engine.client() as other,
    ):
        cold = figures(service, lambda told: bool(told["memory"]["total"]))
        assert not any(cold["work"]["steps"].values())  # warming shows nowhere
        assert not any(cold["work"]["tokens"].values())
        assert cold["memory"]["used"]["adapter_state_bytes"] == 0
        runs = [each.create_lora_training_client(model_path, rank=4) for each in (service, other)]
        for run in runs:
            train(run, 1, 3)
        sampler = service.create_sampling_client(base_model=model_path)
        drawn = sampler.sample(PROMPT, 2, SamplingParams(max_tokens=5)).result(WAIT_S).sequences
        decoded = sum(len(sequence.tokens) for sequence in drawn)
        told = figures(service, lambda told: told["work"]["tokens"]["decoded"] >= decoded)
    trained = 2 * 3 * sum(datum.model_input.length for datum in make_data(1))
    tokens = {"trained": trained, "forward": 0, "prefill": 3}
    assert told["work"]["tokens"] == tokens | {"decoded": decoded}
    assert 3 <= told["work"]["steps"]["train"] <= 6
    assert told["work"]["tenants"]["train"]["sum"] == 6
    assert sum(told["work"]["tenants"]["train"]["counts"]) == told["work"]["steps"]["train"]
    assert told["requests"]["forward_backward"] == told["requests"]["optim_step"]
    assert told["requests"]["optim_step"]["ok"] == sum(told["requests"]["optim_step"].values()) == 6
    assert told["latency_s"]["forward_backward"]["sum"] > told["work"]["busy_s"]["train"] / 2
    assert (told["memory"]["used"]["runs"], told["memory"]["used"]["kv_pages"]) == (2, 0)


def test_no_counter_runs_backwards_when_a_worker_is_started_again(model_path: str) -> None:
    with (
        Engine(model_path, isolate=True, memory_bytes=1 << 30) as engine,
        engine.client() as service,
    ):
        train(service.create_lora_training_client(model_path, rank=4), 1, 2)
        before = figures(service, lambda told: told["work"]["steps"].get("optimizer") == 2)
        assert engine.worker_pid is not None
        os.kill(engine.worker_pid, signal.SIGKILL)
        lost = figures(service, lambda told: told["workers_lost"] == 1)
        assert lost["work"] == before["work"]
        train(service.create_lora_training_client(model_path, rank=4), 1, 1)
        after = figures(service, lambda told: told["work"]["steps"]["optimizer"] > 2)
    assert (after["work"]["steps"]["optimizer"], after["runs_lost"]) == (3, 1)
    assert after["work"]["tokens"]["trained"] * 2 == before["work"]["tokens"]["trained"] * 3
    assert after["memory"]["used"]["runs"] == 1


def fetch(url: str, body: bytes | None = None, **headers: str) -> tuple[int, str]:
    """Status and body of an answer to a GET, or a POST when there is a body."""
    request = urllib.request.Request(url, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=WAIT_S) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_a_scrape_tells_of_engine_and_gateway_without_a_key(model_path: str) -> None:
    with Server(model_path, http="127.0.0.1:0", memory_bytes=1 << 30) as server:
        assert fetch(f"{server.url}/healthz") == (200, '{"status":"ok"}')
        status, ready = fetch(f"{server.url}/readyz")
        assert (status, json.loads(ready)["models"]) == (200, [model_path])
        bomb = {"Content-Encoding": "zstd"}
        assert fetch(f"{server.url}/api/v1/create_session", b"no frame", **bomb)[0] == 400
        _, text = fetch(f"{server.url}/metrics")
    found = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert found["weft_broker_up",] == found["weft_ready",] == 1
    assert found["weft_build_info", version("weft")] == 1
    assert found["weft_workers", "ready"] == 1
    route = "/api/v1/create_session"
    assert sum(n for key, n in found.items() if key[0] == "weft_gateway_refused_bodies_total") == 1
    assert found["weft_gateway_requests_total", route, "400", "POST"] == 1
    assert found["weft_gateway_request_duration_seconds_count", "/readyz"] == 1
