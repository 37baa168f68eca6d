"""A server for tests: what it says of itself, and that a seed fixes every bit."""

import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tenants import logprobs, train

from weft.client import ModelInput, SamplingParams, ServiceClient
from weft.client.errors import BadRequest, EngineFailed, NotFound
from weft.engine.testing import LocalServer, local_server


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with local_server() as running:
        yield running


@pytest.fixture
def service(server: LocalServer) -> Iterator[ServiceClient]:
    with ServiceClient(base_url=server.address, api_key=server.api_key) as client:
        yield client


def numbers(service: ServiceClient, seed: int) -> list[list[float]]:
    """Train, sample, look: losses, log-probabilities of samples and of data."""
    run = service.create_lora_training_client("weft/tiny", rank=4, seed=seed)
    losses = train(run, seed, steps=2)
    sampler = run.save_weights_and_get_sampling_client()
    asked = SamplingParams(max_tokens=12, seed=seed)
    answer = sampler.sample(ModelInput.from_ints([65, 66]), 2, asked).result(60)
    return [losses, *(each.logprobs or [] for each in answer.sequences), logprobs(run).tolist()]


def test_a_seed_fixes_every_bit_whoever_else_is_there(service: ServiceClient) -> None:
    alone = numbers(service, 1)
    crowd = service.create_sampling_client(base_model="weft/tiny")
    long = SamplingParams(max_tokens=400, seed=2, stop=[0])
    others = [crowd.sample(ModelInput.from_ints([67]), 5, long) for _ in range(3)]
    assert numbers(service, 1) == alone
    assert numbers(service, 2) != alone
    assert [len(other.result(60).sequences) for other in others] == [5, 5, 5]


def test_it_speaks_http_and_is_ready(server: LocalServer) -> None:
    with urllib.request.urlopen(f"{server.url}/readyz") as answer:
        assert answer.status == 200


def test_an_environment_leads_to_it_and_to_no_other(server: LocalServer) -> None:
    base = {
        "HOME": "/home",
        "TINKER_PROJECT_ID": "real",
        "TINKER_BASE_URL": "x",
        "no_proxy": "corp",
    }
    assert server.environment(base) == {
        "HOME": "/home",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1,corp",
        "TINKER_API_KEY": server.api_key,
        "TINKER_BASE_URL": server.url,
        "TINKER_TELEMETRY": "0",
        "WEFT_ADDRESS": server.address,
        "WEFT_API_KEY": "",
    }


def test_the_name_of_the_model_is_a_path_to_its_tokenizer(
    server: LocalServer, tmp_path: Path
) -> None:
    for _ in range(2):
        server.link_tokenizer(tmp_path)
    assert (tmp_path / "weft" / "tiny" / "tokenizer.json").is_file()


def test_a_model_that_is_a_directory_needs_no_link(server: LocalServer, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    replace(server, model=str(model), tokenizer_dir=model).link_tokenizer(tmp_path)
    assert list(tmp_path.iterdir()) == [model]


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(BadRequest, match=r"aiohttp not installed.*weft\[testing\]"), local_server():
        pass


def test_a_model_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nowhere"), local_server(tmp_path / "nowhere"):
        pass


def test_a_start_that_takes_too_long_is_an_error() -> None:
    with (
        pytest.raises(EngineFailed, match=r"not ready after 0\.01 s"),
        local_server(start_timeout_s=0.01),
    ):
        pass


def test_an_error_says_what_the_process_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "msgpack.py").write_text("raise ImportError('this one is broken')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    said = r"status 1; it said:\n(?s:.*)this one is broken"
    with pytest.raises(EngineFailed, match=said), local_server():
        pass
